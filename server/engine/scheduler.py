"""Which tokens of which sequences run in the next step. First come, first served; integers only, no tensors.

Running sequences go first; waiting ones are admitted when blocks cover every token they already have; when blocks run
out the newest running sequence is preempted and later recomputed.
"""

from collections import deque
from collections.abc import Iterable
from dataclasses import dataclass

from server.engine.block_pool import BLOCK_SIZE, BlockPool
from server.engine.sequence import Sequence, blocks_for


@dataclass(frozen=True)
class Chunk:
    """A sequence's part in one step: tokens start .. start + length - 1.

    A whole prompt, a slice of one, the latest token and the replay after a preemption are all this.
    """

    sequence: Sequence
    start: int
    length: int

    @property
    def end(self) -> int:
        return self.start + self.length

    @property
    def is_last(self) -> bool:
        """Whether the chunk ends with the sequence's latest token, so that its logits choose the next one."""
        return self.end == self.sequence.num_tokens


@dataclass(frozen=True)
class Schedule:
    """One step's work and what the prefix cache contributed to it."""

    chunks: tuple[Chunk, ...]
    num_preemptions: int
    num_prefix_query_tokens: int
    num_prefix_hit_tokens: int


class Scheduler:
    """Keeps the waiting queue, the running list and the block pool in step with each other."""

    def __init__(self, pool: BlockPool, max_running: int, max_step_tokens: int) -> None:
        self.pool = pool
        self.max_running = max_running
        self.max_step_tokens = max_step_tokens
        self.waiting: deque[Sequence] = deque()
        self.running: list[Sequence] = []  # in order of admission

    def add(self, sequence: Sequence) -> None:
        self.waiting.append(sequence)

    def schedule(self) -> Schedule:
        """Choose the next step's chunks and give them their blocks."""
        budget = self.max_step_tokens
        chunks: list[Chunk] = []
        num_preemptions = 0
        position = 0
        while position < len(self.running) and budget:
            sequence = self.running[position]
            length = min(sequence.num_pending, budget)
            num_preemptions += self._make_room(sequence, sequence.num_computed + length)
            if position < len(self.running):  # it may have been the newest itself
                chunks.append(Chunk(sequence, sequence.num_computed, length))
                budget -= length
                position += 1
        queries, hits = self._admit(chunks, budget) if self.waiting and not num_preemptions else (0, 0)
        return Schedule(tuple(chunks), num_preemptions, queries, hits)

    def commit(self, chunks: Iterable[Chunk]) -> None:
        """The chunks have been computed: publish the blocks they filled."""
        for chunk in chunks:
            sequence = chunk.sequence
            sequence.num_computed = chunk.end
            full = chunk.end // BLOCK_SIZE
            if full > sequence.num_published:
                hashes = sequence.hashes(full)
                for index in range(sequence.num_published, full):
                    self.pool.publish(sequence.blocks[index], hashes[index])
                sequence.num_published = full

    def remove(self, sequence: Sequence) -> None:
        """Finished or aborted, wherever it stands: its blocks go back."""
        if sequence in self.running:
            self.running.remove(sequence)
        else:
            self.waiting.remove(sequence)
        self.pool.release(sequence.forget_cache())

    def _make_room(self, sequence: Sequence, num_tokens: int) -> int:
        """Extend the block table to `num_tokens`, preempting the newest sequences if need be; returns how many."""
        num_preempted = 0
        missing = blocks_for(num_tokens) - len(sequence.blocks)
        while missing > self.pool.num_available:
            newest = self.running.pop()
            self.pool.release(newest.forget_cache())
            self.waiting.appendleft(newest)
            num_preempted += 1
            if newest is sequence:
                return num_preempted
        sequence.blocks.extend(self.pool.allocate() for _ in range(missing))
        return num_preempted

    def _admit(self, chunks: list[Chunk], budget: int) -> tuple[int, int]:
        """Start waiting sequences in order while blocks and budget last; returns prefix tokens asked for and found."""
        queries = hits = 0
        filling = self._blocks_being_filled()
        while self.waiting and budget and len(self.running) < self.max_running:
            sequence = self.waiting[0]
            wanted = sequence.hashes(sequence.max_shared_blocks)
            shared = self.pool.match(wanted)
            if len(shared) < len(wanted) and wanted[len(shared)] in filling:
                break  # a running sequence is computing that very block: share it when it is done
            if not self._take_blocks(sequence, shared):
                break
            self.running.append(self.waiting.popleft())
            length = min(sequence.num_pending, budget)
            chunks.append(Chunk(sequence, sequence.num_computed, length))
            budget -= length
            filling.update(sequence.hashes(sequence.num_tokens // BLOCK_SIZE))
            queries += sequence.num_tokens
            hits += sequence.num_computed
        return queries, hits

    def _take_blocks(self, sequence: Sequence, shared: list[int]) -> bool:
        """Give an admitted sequence its shared blocks and new ones for the rest of its tokens, or nothing at all."""
        missing = blocks_for(sequence.num_tokens) - len(shared)
        unreferenced = sum(self.pool.references(block) == 0 for block in shared)
        if missing > self.pool.num_available - unreferenced:
            return False
        for block in shared:
            self.pool.share(block)
        sequence.blocks = shared + [self.pool.allocate() for _ in range(missing)]
        sequence.num_published = len(shared)
        sequence.num_computed = len(shared) * BLOCK_SIZE
        return True

    def _blocks_being_filled(self) -> set[bytes]:
        """Hashes of full blocks that running sequences hold but have not computed yet."""
        return {
            content
            for sequence in self.running
            for content in sequence.hashes(sequence.num_tokens // BLOCK_SIZE)[sequence.num_published :]
        }
