"""The seam between the engine's step and whatever guesses tokens ahead of the model. Knows no way of guessing."""

from collections.abc import Iterable, Mapping
from typing import Protocol

from server.engine.decoding import Decoding, Verification
from server.engine.scheduler import Chunk
from server.engine.sequence import Sequence
from server.engine.types import StepStats


class Speculator(Protocol):
    """Guesses tokens for sequences that ask for it. Wrong guesses cost time, never a token."""

    def num_wanted(self, sequence: Sequence) -> int:
        """How many drafts the sequence should get in the coming step, room permitting."""
        ...

    def draft(self, chunks: Iterable[Chunk], decodings: Mapping[int, Decoding]) -> Mapping[int, tuple[int, ...]]:
        """At most `num_drafts` tokens behind each chunk that has room for them, by sequence id."""
        ...

    def verified(self, verifications: Iterable[Verification]) -> None:
        """What became of the drafts."""
        ...

    def measured(self, stats: StepStats) -> StepStats:
        """What the step cost; returned with what became of its drafts."""
        ...

    def forget(self, sequence: Sequence) -> None:
        """The sequence has ended."""
        ...


class NoSpeculation:
    """Guesses nothing."""

    def num_wanted(self, sequence: Sequence) -> int:
        return 0

    def draft(self, chunks: Iterable[Chunk], decodings: Mapping[int, Decoding]) -> Mapping[int, tuple[int, ...]]:
        return {}

    def verified(self, verifications: Iterable[Verification]) -> None:
        pass

    def measured(self, stats: StepStats) -> StepStats:
        return stats

    def forget(self, sequence: Sequence) -> None:
        pass
