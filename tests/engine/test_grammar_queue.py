"""Whose grammar is compiled next: every tenant's in turn, and nobody's that was given up."""

from dataclasses import dataclass, field
from typing import NoReturn

import pytest

from server.engine.grammar_queue import GrammarQueue, no_grammars
from server.engine.grammar_spec import Grammar
from server.engine.params import ParameterError

HARMLESS = Grammar("regex", "a")


def bomb(index: int) -> Grammar:
    return Grammar("regex", f"bomb {index}")


@dataclass
class Pending:
    is_done: bool = False
    is_cancelled: bool = False

    def done(self) -> bool:
        return self.is_done

    def cancel(self) -> None:
        self.is_cancelled = True

    def wait(self, seconds: float) -> None:
        self.is_done = True

    def result(self) -> NoReturn:
        raise NotImplementedError


@dataclass
class Compiler:
    """Compiles one at a time, in the order they were started, when told to."""

    started: list[tuple[Grammar, Pending]] = field(default_factory=list)

    def start(self, grammar: Grammar) -> Pending:
        self.started.append((grammar, Pending()))
        return self.started[-1][1]

    @property
    def grammars(self) -> list[Grammar]:
        return [grammar for grammar, _ in self.started]


def compile_next(queue: GrammarQueue) -> list[int]:
    queue.wait(1.0)
    ids = [id_ for id_, _ in queue.done()]
    for id_ in ids:
        assert queue.remove(id_)
    return ids


@pytest.mark.parametrize("salt", ["other|", "other|bombs|0"])
def test_a_tenant_waits_for_one_grammar_of_another_however_many_it_sends(salt: str) -> None:
    compiler = Compiler()
    queue = GrammarQueue(compiler.start)
    for index in range(8):
        queue.add(index, f"bombs|{index}", bomb(index))
    queue.add(8, salt, HARMLESS)
    assert [compile_next(queue) for _ in range(9)] == [[0], [8], *([index] for index in range(1, 8))]
    assert not queue
    assert queue._lanes == queue._started == {}


def test_choices_with_one_grammar_are_started_together_and_others_after_them() -> None:
    compiler = Compiler()
    queue = GrammarQueue(compiler.start)
    for index in range(6):
        queue.add(index, "", HARMLESS)
    queue.add(6, "", bomb(0))
    queue.add(7, "", HARMLESS)
    assert compiler.grammars == [HARMLESS] * 4
    assert [compile_next(queue) for _ in range(8)] == [[index] for index in range(8)]
    assert compiler.grammars == [HARMLESS] * 6 + [bomb(0), HARMLESS]


def test_what_was_given_up_is_cancelled_or_never_started() -> None:
    compiler = Compiler()
    queue = GrammarQueue(compiler.start)
    for index in range(3):
        queue.add(index, "", bomb(index))
    assert queue.remove(1)
    assert queue.remove(0)
    assert not queue.remove(0)
    assert compiler.grammars == [bomb(0), bomb(2)]
    assert [pending.is_cancelled for _, pending in compiler.started] == [True, False]
    assert compile_next(queue) == [2]
    assert not queue


def test_what_cannot_be_started_does_not_wait() -> None:
    queue = GrammarQueue(no_grammars)
    with pytest.raises(ParameterError, match="grammar is not supported"):
        queue.add(0, "", HARMLESS)
    assert not queue
    assert not queue.remove(0)
