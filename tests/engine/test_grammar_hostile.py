"""Grammars made to hang, crash or fill the compiler are refused within bounds, and others are served after them."""

import contextlib
import json
import resource
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from model.tokenizer import Tokenizer
from server.engine.grammar import GrammarCompiler
from server.engine.grammar_spec import MAX_GRAMMAR_BYTES, Grammar, GrammarError

CHECKPOINT = Path(__file__).parents[2] / "checkpoints" / "shakespeare-gqa"
MAX_SECONDS = 1.0  # of computing, by the process that tries a grammar and by the engine's each
HARMLESS = Grammar("regex", "a|b")


def schema(value: object) -> Grammar:
    return Grammar("json_schema", json.dumps(value))


def chain(length: int) -> str:
    rules = "\n".join(f"r{i}: r{i + 1}" for i in range(length))
    return f'start: r0\n{rules}\nr{length}: "b"'


REFUSED = {
    "false": schema({"not": {}}),
    "incompatible types": schema({"allOf": [{"type": "string"}, {"type": "integer"}]}),
    "minimum above maximum": schema({"type": "integer", "minimum": 5, "maximum": 4}),
    "impossible property": schema({"type": "object", "properties": {"a": False}, "required": ["a"]}),
    "reference to itself": schema({"$ref": "#"}),
    "no such reference": schema({"$ref": "#/$defs/x"}),
    "remote reference": schema({"$ref": "http://127.0.0.1/x"}),
    "unknown keyword": schema({"type": "array", "uniqueItems": True}),
    "too narrow": schema({"type": "number", "exclusiveMinimum": 24, "maximum": 24.5}),
    "product of alternatives": schema(
        {"allOf": [{"anyOf": [{"properties": {f"{i}_{j}": {"type": "null"}}} for j in range(30)]} for i in range(6)]}
    ),
    "common multiples": schema({"allOf": [{"type": "integer", "multipleOf": p} for p in (9973, 9967, 9949, 9941)]}),
    "remainders": schema({"type": "integer", "multipleOf": 1_000_003}),
    "intersection": schema({"type": "string", "allOf": [{"pattern": f".*a.{{{i}}}b.*"} for i in range(40)]}),
    "lone operator": Grammar("regex", "(*"),
    "look-ahead": Grammar("regex", "(?=a)b"),
    "back-reference": Grammar("regex", r"(a)\1"),
    "nested groups": Grammar("regex", "(" * 30_000 + "a" + ")" * 30_000),
    "nested repetitions": Grammar("regex", "(?:" * 200 + "a" + ")*" * 200),
    "nothing matches": Grammar("regex", r"[^\s\S]"),
    "deep rules": Grammar("grammar", chain(3_500)),
    "doubling": Grammar(
        "grammar", "start: A0\n" + "\n".join(f"A{i}: A{i + 1} A{i + 1}" for i in range(60)) + '\nA60: "b"'
    ),
    "never ends": Grammar("grammar", 'start: s\ns: s "a"'),
    "no start": Grammar("grammar", 'x: "a"'),
    "options": Grammar("grammar", '%llguidance {"no_forcing": false}\nstart: "a"'),
    "another format": Grammar("grammar", '{"grammars": [{"lark_grammar": "start: /a/"}]}'),
    "special token": Grammar("grammar", 'start: "a" <|endoftext|>'),
    "deep GBNF": Grammar("grammar", "root ::= " + "(" * 20_000),
}


@pytest.fixture(scope="module")
def compiler() -> Iterator[GrammarCompiler]:
    compiler = GrammarCompiler(Tokenizer.load(CHECKPOINT), 1024)
    yield compiler
    compiler.close()


def child_seconds() -> float:
    """Computed by processes that have ended."""
    usage = resource.getrusage(resource.RUSAGE_CHILDREN)
    return usage.ru_utime + usage.ru_stime


@pytest.mark.parametrize("name", REFUSED)
def test_what_cannot_be_used_is_refused_within_a_second_and_the_next_is_served(
    compiler: GrammarCompiler, name: str
) -> None:
    children, engine = child_seconds(), time.process_time()
    with pytest.raises(GrammarError) as refusal:
        compiler.start(REFUSED[name]).result()
    compiler.probe.close()  # only then is it counted, from its start on
    assert child_seconds() - children < MAX_SECONDS
    assert time.process_time() - engine < MAX_SECONDS
    assert 10 < len(str(refusal.value)) < 500
    assert compiler.start(HARMLESS).result().mask().any()


@pytest.mark.parametrize(
    "regex",
    [
        "xa{1000000}",
        "x(a{1000}){1000}",
        "x((a{50}){50}){50}",
        "x(.*a){300}",
        "x(a|b)*a(a|b){60}",
        r"x(\w{30}|\W{40}){60}",
    ],
)
def test_a_costly_step_ends_its_own_answer_or_none(compiler: GrammarCompiler, regex: str) -> None:
    tokens = Tokenizer.load(CHECKPOINT).encode("xaaaaaaaaaaaaaaaaaaaa", add_special_tokens=False)
    started = time.process_time()
    with contextlib.suppress(GrammarError):
        matcher = compiler.start(Grammar("regex", regex)).result()
        for token in tokens:
            matcher.scout().accept(token)
            matcher.accept(token)
            matcher.mask()
    assert time.process_time() - started < MAX_SECONDS
    assert compiler.start(HARMLESS).result().mask().any()


def test_the_first_draft_of_a_large_schema_finds_its_scout_compiled(compiler: GrammarCompiler) -> None:
    names = [f"property {index}" for index in range(600)]
    large = schema({"type": "object", "properties": {name: {"type": "string"} for name in names}, "required": names})
    compiler.start(large).result()
    started = time.thread_time()
    matcher = compiler.start(large).result()
    waited = time.thread_time()
    matcher.scout().mask()
    assert waited - started < 0.01
    assert time.thread_time() - waited < 0.01


def test_a_grammar_that_ends_the_trial_process_is_tried_once(compiler: GrammarCompiler) -> None:
    bomb = schema({"type": "integer", "multipleOf": 1_000_033})
    for _ in range(3):
        with pytest.raises(GrammarError, match="takes too long"):
            compiler.start(bomb).result()
    num_started = compiler.probe.num_started
    with pytest.raises(GrammarError):
        compiler.start(bomb).result()
    assert compiler.probe.num_started == num_started


def test_a_trial_process_that_was_killed_is_started_again(compiler: GrammarCompiler) -> None:
    assert compiler.start(Grammar("regex", "before")).result().mask().any()
    compiler.probe.close()
    assert compiler.start(Grammar("regex", "after")).result().mask().any()


def test_text_beyond_the_limit_never_gets_so_far() -> None:
    assert Grammar("regex", "é" * (MAX_GRAMMAR_BYTES // 2))
    with pytest.raises(GrammarError, match=f"the limit is {MAX_GRAMMAR_BYTES}"):
        Grammar("regex", "é" * (MAX_GRAMMAR_BYTES // 2) + "a")
