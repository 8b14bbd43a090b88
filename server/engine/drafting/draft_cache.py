"""Which blocks of the draft model's cache hold what. Integers and hashes only, no tensors.

The draft model stores its keys and values under the target's block numbers. The target decides who gets a block, so a
block that comes from the prefix cache may hold, on the draft's side, something older or nothing at all.
"""

from server.engine.block_pool import BLOCK_SIZE
from server.engine.sequence import Sequence


class DraftCacheLedger:
    """The content hash of every block that the draft model has filled with final tokens."""

    def __init__(self) -> None:
        self._content: dict[int, bytes] = {}

    def skip_filled(self, sequence: Sequence, limit: int) -> None:
        """Count what the cache holds already as computed, at most `limit` leading tokens of the sequence."""
        if sequence.num_draft_computed % BLOCK_SIZE:
            return
        hashes = sequence.hashes(limit // BLOCK_SIZE)
        for index in range(sequence.num_draft_computed // BLOCK_SIZE, len(hashes)):
            if self._content.get(sequence.blocks[index]) != hashes[index]:
                return
            sequence.num_draft_computed += BLOCK_SIZE

    def overwrite(self, sequence: Sequence, start: int, end: int) -> None:
        """Positions start .. end - 1 are about to be written: their blocks hold nothing known any more."""
        for index in range(start // BLOCK_SIZE, -(-end // BLOCK_SIZE)):
            self._content.pop(sequence.blocks[index], None)

    def advance(self, sequence: Sequence, num_computed: int) -> None:
        """So many leading tokens of the sequence are final and in the draft model's cache."""
        filled = range(sequence.num_draft_computed // BLOCK_SIZE, num_computed // BLOCK_SIZE)
        if filled:
            hashes = sequence.hashes(filled.stop)
            for index in filled:
                self._content[sequence.blocks[index]] = hashes[index]
        sequence.num_draft_computed = num_computed
