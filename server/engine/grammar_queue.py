"""Sequences that wait for their grammar, and whose is compiled next. Knows no compiler but how to start one.

A compiler takes grammars in turn, and one that is made to be costly takes as long as one may. So each tenant has one
grammar at the compiler at a time, and a tenant's first waits for no more than one of every other tenant.
"""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import NoReturn, Protocol

from server.engine.decoding import Matcher
from server.engine.grammar_spec import Grammar
from server.engine.params import ParameterError

# Matchers of one grammar, which the choices of a request ask for: the compiler is not idle until a step looks again.
_MAX_STARTED = 4


class PendingMatcher(Protocol):
    """A grammar that is being compiled in another thread."""

    def done(self) -> bool: ...

    def cancel(self) -> None:
        """Nobody will ask for its result."""
        ...

    def wait(self, seconds: float) -> None:
        """Return when it is done, or after that time."""
        ...

    def result(self) -> Matcher:
        """What a sequence follows it by. Raises GrammarError and CompilerError."""
        ...


StartGrammar = Callable[[Grammar], PendingMatcher]


def no_grammars(grammar: Grammar) -> NoReturn:
    """Of a core made without a compiler. Raises ParameterError."""
    raise ParameterError("grammar", "is not supported by this engine")


class GrammarQueue:
    """Not thread-safe. Sequences are known by their ids."""

    def __init__(self, start: StartGrammar) -> None:
        self._start = start
        self._lanes: dict[str, _Lane] = {}
        self._tenants: dict[int, str] = {}
        self._started: dict[int, PendingMatcher] = {}  # in that order

    def __bool__(self) -> bool:
        """Whether any sequence waits."""
        return bool(self._tenants)

    def add(self, id_: int, cache_salt: str, grammar: Grammar) -> None:
        """The sequence waits for its grammar. Raises what starting to compile does; then it does not.

        A salt begins with its tenant, up to the first "|": what a client adds must not make many tenants of one.
        """
        tenant = cache_salt.partition("|")[0]
        lane = self._lanes.get(tenant, _Lane())
        if lane.waiting or not lane.takes(grammar):
            lane.waiting[id_] = grammar
        else:
            self._begin(lane, id_, grammar)
        self._lanes[tenant] = lane
        self._tenants[id_] = tenant

    def remove(self, id_: int) -> bool:
        """The sequence waits no longer, and others of its tenant are started in its place; whether it did wait."""
        tenant = self._tenants.pop(id_, None)
        if tenant is None:
            return False
        lane = self._lanes[tenant]
        lane.waiting.pop(id_, None)
        lane.started.discard(id_)
        pending = self._started.pop(id_, None)
        if pending is not None and not pending.done():
            pending.cancel()
        while lane.waiting and lane.takes(lane.waiting[first := next(iter(lane.waiting))]):
            self._begin(lane, first, lane.waiting.pop(first))
        if not lane.started:
            del self._lanes[tenant]
        return True

    def wait(self, seconds: float) -> None:
        """Until the grammar that was started first is done, or until the time is up."""
        next(iter(self._started.values())).wait(seconds)

    def done(self) -> list[tuple[int, PendingMatcher]]:
        """The sequences whose grammar is done; `remove` them."""
        return [(id_, pending) for id_, pending in self._started.items() if pending.done()]

    def _begin(self, lane: "_Lane", id_: int, grammar: Grammar) -> None:
        self._started[id_] = self._start(grammar)
        lane.started.add(id_)
        lane.grammar = grammar


@dataclass
class _Lane:
    """One tenant's sequences. Where any waits, one is started."""

    waiting: dict[int, Grammar] = field(default_factory=dict)
    started: set[int] = field(default_factory=set)
    grammar: Grammar | None = None  # of those started

    def takes(self, grammar: Grammar) -> bool:
        """Whether the grammar may be started beside those that are."""
        return not self.started or (grammar == self.grammar and len(self.started) < _MAX_STARTED)
