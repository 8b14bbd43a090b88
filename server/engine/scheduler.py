"""Which tokens of which sequences run in the next step. First come, first served; integers only, no tensors.

Running sequences go first; waiting ones are admitted when blocks cover every token they already have; when blocks run
out the newest running sequence is preempted and later recomputed.
"""

from collections import deque
from collections.abc import Callable, Iterable
from typing import NamedTuple

from server.engine.block_pool import BLOCK_SIZE, BlockPool
from server.engine.sequence import Sequence, blocks_for


class Chunk(NamedTuple):
    """A sequence's part in one step: tokens start .. start + length - 1.

    A whole prompt, a slice of one, the latest token, that token with drafts behind it, and the replay after a
    preemption are all this.
    """

    sequence: Sequence
    start: int
    length: int
    num_drafts: int = 0  # tokens that may be guessed behind the last one: blocks and budget cover them

    @property
    def end(self) -> int:
        return self.start + self.length

    @property
    def last(self) -> "Chunk":
        """Its last token alone."""
        return Chunk(self.sequence, self.end - 1, 1)

    @property
    def is_last(self) -> bool:
        """Whether the chunk ends with the sequence's latest token, so that its logits choose the next one."""
        return self.end == self.sequence.num_tokens


class Schedule(NamedTuple):
    """One step's work and what the prefix cache contributed to it."""

    chunks: tuple[Chunk, ...]
    num_preemptions: int
    num_prefix_query_tokens: int
    num_prefix_hit_tokens: int


def no_drafts(sequence: Sequence) -> int:
    """The wish of a sequence that does not speculate."""
    return 0


class Scheduler:
    """Keeps the waiting queue, the running list and the block pool in step with each other."""

    def __init__(self, pool: BlockPool, max_running: int, max_step_tokens: int) -> None:
        self.pool = pool
        self.max_running = max_running
        self.max_step_tokens = max_step_tokens
        self.waiting: deque[Sequence] = deque()
        self.running: list[Sequence] = []  # in order of admission
        self._companions: dict[Sequence, Sequence] = {}

    @property
    def has_work(self) -> bool:
        return bool(self.running or self.waiting)

    def add(self, sequence: Sequence, companion: Sequence | None = None) -> None:
        """Queue a sequence, and behind it the companion that runs all of its drafts too, in the same step."""
        self.waiting.append(sequence)
        if companion is not None:
            self.waiting.append(companion)
            self._companions[sequence] = companion

    def add_first(self, sequence: Sequence) -> None:
        """Queue the continuation of a sequence that was running: it has waited its turn."""
        self.waiting.appendleft(sequence)

    def schedule(self, drafts_wanted: Callable[[Sequence], int] = no_drafts) -> Schedule:
        """Choose the next step's chunks and give them their blocks; what is left over is room for drafts."""
        budget = self.max_step_tokens
        chunks: list[Chunk] = []
        num_preemptions = 0
        position = 0
        while position < len(self.running) and budget:
            sequence = self.running[position]
            if sequence.is_held:
                position += 1
                continue
            start = sequence.num_computed
            length = min(len(sequence.tokens) - start, budget)
            if start + length > BLOCK_SIZE * len(sequence.blocks):
                num_preemptions += self._make_room(sequence, start + length)
                if position == len(self.running):
                    break  # it was the newest itself
            chunks.append(Chunk(sequence, start, length))
            budget -= length
            position += 1
        queries, hits = self._admit(chunks, budget) if self.waiting and not num_preemptions else (0, 0)
        while not chunks and self._park():
            num_preemptions += 1
            queries, hits = self._admit(chunks, budget)
        if not num_preemptions:
            self._reserve_drafts(chunks, drafts_wanted)
        return Schedule(tuple(chunks), num_preemptions, queries, hits)

    def commit(self, chunks: Iterable[Chunk]) -> None:
        """The chunks have been computed."""
        for sequence, start, length, _ in chunks:
            self.advance(sequence, start + length)

    def advance(self, sequence: Sequence, num_computed: int) -> None:
        """So many leading tokens of the sequence are final and in the cache: publish the blocks they filled."""
        sequence.num_computed = num_computed
        full = num_computed // BLOCK_SIZE
        if full > sequence.num_published:
            hashes = sequence.hashes(full)
            for index in range(sequence.num_published, full):
                self.pool.publish(sequence.blocks[index], hashes[index])
            sequence.num_published = full

    def reserve_ahead(self, chunks: Iterable[Chunk], num_tokens: int) -> bool:
        """Blocks for so many tokens behind each chunk's sequence, or none at all where that would preempt somebody."""
        missing = [(chunk.sequence, max(0, _missing(chunk.sequence, num_tokens))) for chunk in chunks]
        if sum(count for _, count in missing) > self.pool.num_available:
            return False
        for sequence, count in missing:
            sequence.blocks.extend(self.pool.allocate() for _ in range(count))
        return True

    def trim(self, sequence: Sequence) -> None:
        """Give back the blocks that only tokens it did not get would have needed."""
        if BLOCK_SIZE * (len(sequence.blocks) - 1) >= len(sequence.tokens):
            kept = blocks_for(sequence.num_tokens)
            surplus, sequence.blocks[kept:] = sequence.blocks[kept:], []
            self.pool.release(surplus)

    def preempt(self, sequence: Sequence) -> None:
        """Take a running sequence off its blocks; it is the next to be admitted, and computed anew."""
        self.running.remove(sequence)
        self.pool.release(sequence.forget_cache())
        self.waiting.appendleft(sequence)

    def remove(self, sequence: Sequence) -> None:
        """Finished or aborted, wherever it stands: its blocks go back."""
        self._companions.pop(sequence, None)
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
            newest = self.running[-1]
            self.preempt(newest)
            num_preempted += 1
            if newest is sequence:
                return num_preempted
        sequence.blocks.extend(self.pool.allocate() for _ in range(missing))
        return num_preempted

    def _park(self) -> bool:
        """Nothing can run for want of what the held ones occupy: take the newest of those off, if somebody waits.

        It does not come back before its next token is chosen, so that whoever it waits for gets there.
        """
        held = next((sequence for sequence in reversed(self.running) if sequence.is_held), None)
        if held is None or self._next_waiting() is None:
            return False
        self.preempt(held)
        return True

    def _next_waiting(self) -> Sequence | None:
        return next((sequence for sequence in self.waiting if not sequence.is_held), None)

    def _admit(self, chunks: list[Chunk], budget: int) -> tuple[int, int]:
        """Start waiting sequences in order while blocks and budget last; returns prefix tokens asked for and found."""
        queries = hits = 0
        filling = self._blocks_being_filled()
        while budget and len(self.running) < self.max_running and (sequence := self._next_waiting()):
            wanted = sequence.hashes(sequence.max_shared_blocks)
            shared = self.pool.match(wanted)
            if len(shared) < len(wanted) and wanted[len(shared)] in filling:
                break  # a running sequence is computing that very block: share it when it is done
            if not self._take_blocks(sequence, shared):
                break
            self.waiting.remove(sequence)
            self.running.append(sequence)
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

    def _reserve_drafts(self, chunks: list[Chunk], drafts_wanted: Callable[[Sequence], int]) -> None:
        """Let sequences guess ahead with the budget and the blocks that nobody else wants: drafts preempt no one."""
        wishes = [drafts_wanted(chunk.sequence) if chunk.sequence.may_draft else 0 for chunk in chunks]
        if not any(wishes):
            return
        budget = self.max_step_tokens - sum(chunk.length for chunk in chunks)
        choosing = {chunk.sequence for chunk in chunks if chunk.is_last}
        for index, (chunk, wanted) in enumerate(zip(tuple(chunks), wishes, strict=True)):
            if budget <= 0:
                return
            sequence = chunk.sequence
            members = self._drafting_together(sequence)
            if not choosing.issuperset(members):
                continue
            # The step gives a token of its own: with all it may still have guessed, that one would be too many.
            count = min(wanted, sequence.num_remaining - 1, budget // len(members))
            while count > 0 and sum(_missing(member, count) for member in members) > self.pool.num_available:
                count -= 1
            if count > 0:
                for member in members:
                    member.blocks.extend(self.pool.allocate() for _ in range(_missing(member, count)))
                chunks[index] = chunk._replace(num_drafts=count)
                budget -= count * len(members)

    def _drafting_together(self, sequence: Sequence) -> tuple[Sequence, ...]:
        """The sequence and its companion, which are given room for drafts both or neither."""
        companion = self._companions.get(sequence)
        return (sequence,) if companion is None else (sequence, companion)

    def _blocks_being_filled(self) -> set[bytes]:
        """Hashes of full blocks that running sequences hold but have not computed yet."""
        return {
            content
            for sequence in self.running
            for content in sequence.hashes(sequence.num_tokens // BLOCK_SIZE)[sequence.num_published :]
        }


def _missing(sequence: Sequence, num_ahead: int) -> int:
    """Blocks that the sequence lacks for its tokens and so many behind them."""
    return blocks_for(sequence.num_tokens + num_ahead) - len(sequence.blocks)
