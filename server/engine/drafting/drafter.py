"""The seam between the speculator and one way of guessing. Knows no model and no index."""

from collections.abc import Mapping, Sequence
from typing import Protocol

from server.engine.decoding import Decoding, Verification
from server.engine.scheduler import Chunk
from server.engine.sequence import Sequence as EngineSequence

Drafts = dict[int, tuple[int, ...]]  # by sequence id


class Drafter(Protocol):
    """Guesses for the sequences it is given, step by step."""

    def draft(self, chunks: Sequence[Chunk], decodings: Mapping[int, Decoding]) -> Drafts:
        """At most `num_drafts` tokens behind each chunk; one with room for none may still be prepared for later."""
        ...

    def verified(self, verification: Verification) -> None:
        """What became of a sequence's drafts, its tokens already appended."""
        ...

    def forget(self, sequence: EngineSequence) -> None:
        """The sequence has ended."""
        ...
