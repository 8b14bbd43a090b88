"""Every beam search of a core: who follows which, and what each does to the schedule. Knows no score."""

from collections.abc import Callable, Iterator
from dataclasses import replace

from server.engine.beam_search import Search
from server.engine.decoding import Decoding
from server.engine.scheduler import Scheduler
from server.engine.sequence import Sequence
from server.engine.types import (
    MAX_BEAMS,
    BeamSearch,
    EngineInfo,
    FinishReason,
    SequenceOutput,
    SequenceRequest,
    Speculation,
)


class BeamSearches:
    """`internal_ids` are ids for sequences that no client knows: every beam is one. `ending` hears of each that ends
    while it still has its blocks."""

    def __init__(
        self,
        scheduler: Scheduler,
        info: EngineInfo,
        internal_ids: Iterator[int],
        ending: Callable[[Sequence], None],
    ) -> None:
        self._scheduler = scheduler
        self._info = info
        self._internal_ids = internal_ids
        self._ending = ending
        self._search_of: dict[int, Search] = {}  # by the id of whoever follows it
        self._search_at: dict[int, Search] = {}  # by the id of any of its sequences
        self._latest: dict[SequenceRequest, Search] = {}  # by what was asked for, the rank and the seed left out

    def __len__(self) -> int:
        return len(self._search_of)

    def __contains__(self, id_: int) -> bool:
        return id_ in self._search_of

    def add(self, request: SequenceRequest, rules: BeamSearch) -> None:
        """Begin a search, or join the one that was begun for another of its hypotheses and has not run yet.

        A search has no more followers than it may have hypotheses. Each gets a copy of the prompt's log-probabilities
        in one and the same step, so with any number of them a step would have more to say than its tokens allow for.
        """
        asked = replace(request, id=0, params=replace(request.params, seed=0), beams=replace(rules, rank=0))
        search = self._latest.get(asked)
        if search is None or search.root.scheduled_at is not None or len(search.followers) == MAX_BEAMS:
            search = self._latest[asked] = self._begin(asked, rules)
        search.followers[request.id] = rules.rank
        self._search_of[request.id] = search

    def abort(self, id_: int) -> SequenceOutput:
        """One follower less; the last one's going ends the search."""
        search = self._search_of.pop(id_)
        del search.followers[id_]
        if not search.followers:
            self._end(search)
        return replace(search.output(id_), finish_reason="abort")

    def of(self, sequence: Sequence) -> Search | None:
        """The search that a sequence is a beam of."""
        return self._search_at.get(sequence.request.id)

    def advance(self, search: Search) -> list[SequenceOutput]:
        """Every beam has its logits: choose, and queue what the next step is to run."""
        changes = search.advance()
        for sequence in changes.removed:
            self._remove(sequence)
        for sequence in reversed(changes.added):
            self._search_at[sequence.request.id] = search
            self._scheduler.add_first(sequence)
        outputs = search.report()
        if search.is_done:
            self._end(search)
        return outputs

    def fail(self, search: Search, reason: FinishReason, error: str) -> list[SequenceOutput]:
        """End a search that cannot go on."""
        outputs = [replace(search.output(id_), finish_reason=reason, error=error) for id_ in search.followers]
        self._end(search)
        return outputs

    def _begin(self, asked: SequenceRequest, rules: BeamSearch) -> Search:
        root = Decoding.of(replace(asked, id=next(self._internal_ids), speculation=Speculation()), self._info)
        root.sequence.may_draft = False
        search = Search(root, rules, self._internal_ids)
        self._search_at[root.sequence.request.id] = search
        self._scheduler.add(root.sequence)
        return search

    def _end(self, search: Search) -> None:
        for sequence in search.sequences:
            self._remove(sequence)
        for id_ in search.followers:
            del self._search_of[id_]
        self._latest = {asked: other for asked, other in self._latest.items() if other is not search}

    def _remove(self, sequence: Sequence) -> None:
        del self._search_at[sequence.request.id]
        self._ending(sequence)
        self._scheduler.remove(sequence)
