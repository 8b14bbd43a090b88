"""Drafts copied from a sequence's own earlier tokens, never from another's. Knows no model and no way of searching."""

from collections.abc import Callable, Mapping, Sequence
from typing import Protocol

from server.engine.decoding import Decoding, Verification
from server.engine.drafting.drafter import Drafts
from server.engine.scheduler import Chunk
from server.engine.sequence import Sequence as EngineSequence

# A long prompt is indexed over several steps: at some microseconds a token it would hold everybody up.
MAX_INDEXED_PER_STEP = 4096


class Index(Protocol):
    """What of a growing text is needed to find how it went on before."""

    @property
    def num_tokens(self) -> int: ...

    def extend(self, tokens: Sequence[int]) -> None:
        """The text goes on."""
        ...

    def continuation(self, count: int) -> tuple[int, ...]:
        """At most `count` tokens that may come next."""
        ...


class LookupDrafter:
    """One index per sequence that drafts this way, filled as far as the sequence has come."""

    def __init__(self, make_index: Callable[[], Index], max_indexed: int = MAX_INDEXED_PER_STEP) -> None:
        self._make_index = make_index
        self._max_indexed = max_indexed
        self._indexes: dict[int, Index] = {}

    def draft(self, chunks: Sequence[Chunk], decodings: Mapping[int, Decoding]) -> Drafts:
        drafts: Drafts = {}
        budget = self._max_indexed
        for chunk in chunks:
            if not chunk.num_drafts:
                continue
            id_, tokens = chunk.sequence.request.id, chunk.sequence.tokens
            index = self._indexes.get(id_)
            if index is None:
                index = self._indexes[id_] = self._make_index()
            missing = tokens[index.num_tokens : index.num_tokens + budget]
            index.extend(missing)
            budget -= len(missing)
            if index.num_tokens == len(tokens) and (found := index.continuation(chunk.num_drafts)):
                drafts[id_] = found
        return drafts

    def verified(self, verification: Verification) -> None:
        pass

    def forget(self, sequence: EngineSequence) -> None:
        self._indexes.pop(sequence.request.id, None)
