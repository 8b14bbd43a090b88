"""The block pool against a naive dictionary of what every block is, under arbitrary sequences of operations."""

from dataclasses import dataclass

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from server.engine.block_pool import BlockPool, block_hash, salted_root


@dataclass
class Naive:
    """One block as the oracle sees it."""

    references: int = 0
    content: bytes | None = None
    released_at: int = 0  # when it was last cached; the oldest is evicted first


class PoolMachine(RuleBasedStateMachine):
    """Holders take and release lists of blocks, as sequences do."""

    def __init__(self) -> None:
        super().__init__()
        self.now = 0
        self.holders: list[list[int]] = []

    @initialize(size=st.integers(1, 9))
    def start(self, size: int) -> None:
        self.pool = BlockPool(size)
        self.blocks = [Naive() for _ in range(size)]

    def cached(self) -> list[int]:
        """Oldest first."""
        kept = [index for index, block in enumerate(self.blocks) if block.references == 0 and block.content is not None]
        return sorted(kept, key=lambda index: self.blocks[index].released_at)

    def free(self) -> set[int]:
        return {index for index, block in enumerate(self.blocks) if block.references == 0 and block.content is None}

    def find(self, content: bytes) -> int | None:
        return next((index for index, block in enumerate(self.blocks) if block.content == content), None)

    def take(self, block: int) -> None:
        assert self.blocks[block].references == 0, "somebody holds it"
        self.blocks[block] = Naive(references=1)

    @rule(count=st.integers(1, 3))
    def allocate(self, count: int) -> None:
        holder: list[int] = []
        for _ in range(count):
            free, cached = self.free(), self.cached()
            if not free and not cached:
                with pytest.raises(IndexError, match="referenced"):
                    self.pool.allocate()
                break
            block = self.pool.allocate()
            assert block in free if free else block == cached[0]
            self.take(block)
            holder.append(block)
        self.holders.append(holder)

    @rule(data=st.data(), content=st.integers(0, 6))
    @precondition(lambda self: any(self.holders))
    def publish(self, data: st.DataObject, content: int) -> None:
        block = data.draw(st.sampled_from([block for holder in self.holders for block in holder]))
        name = bytes([content])
        self.pool.publish(block, name)
        if self.find(name) is None and self.blocks[block].content is None:
            self.blocks[block].content = name

    @rule(contents=st.lists(st.integers(0, 6), min_size=1, max_size=4, unique=True))
    def share(self, contents: list[int]) -> None:
        names = [bytes([content]) for content in contents]
        expected = []
        for name in names:
            block = self.find(name)
            if block is None:
                break
            expected.append(block)
        assert self.pool.match(names) == expected
        for block in expected:
            self.pool.share(block)
            self.blocks[block].references += 1
        self.holders.append(list(expected))

    @rule(data=st.data())
    @precondition(lambda self: self.holders)
    def release(self, data: st.DataObject) -> None:
        holder = self.holders.pop(data.draw(st.integers(0, len(self.holders) - 1)))
        self.pool.release(holder)
        for block in reversed(holder):
            self.now += 1
            self.blocks[block].references -= 1
            self.blocks[block].released_at = self.now

    @rule(data=st.data())
    @precondition(lambda self: self.blocks)
    def withdraw(self, data: st.DataObject) -> None:
        chosen = data.draw(st.lists(st.integers(0, len(self.blocks) - 1), max_size=3, unique=True))
        self.pool.withdraw(chosen)
        for block in chosen:
            self.blocks[block].content = None

    @invariant()
    def agrees_with_the_oracle(self) -> None:
        if not hasattr(self, "pool"):
            return
        self.pool.check()
        assert [self.pool.references(index) for index in range(len(self.blocks))] == [
            block.references for block in self.blocks
        ]
        assert (self.pool.num_free, self.pool.num_cached) == (len(self.free()), len(self.cached()))
        assert self.pool.num_available == len(self.free()) + len(self.cached())
        published = {block.content for block in self.blocks} - {None}
        assert all(self.pool.is_published(bytes([name])) == (bytes([name]) in published) for name in range(7))


PoolMachine.TestCase.settings = settings(max_examples=60, stateful_step_count=40, deadline=None)
test_the_pool_agrees_with_a_naive_one = PoolMachine.TestCase


def test_the_last_block_of_a_sequence_is_evicted_before_its_first() -> None:
    pool = BlockPool(3)
    blocks = [pool.allocate() for _ in range(3)]
    for block in blocks:
        pool.publish(block, bytes([block]))
    pool.release(blocks)
    assert [pool.allocate() for _ in range(3)] == blocks[::-1]


def test_a_block_released_too_often_is_noticed() -> None:
    pool = BlockPool(1)
    block = pool.allocate()
    pool.release([block])
    with pytest.raises(AssertionError, match="more often"):
        pool.release([block])


def test_the_check_notices_a_lost_and_a_doubly_owned_block() -> None:
    pool = BlockPool(2)
    block = pool.allocate()
    pool._free.append(block)
    with pytest.raises(AssertionError, match="up for taking"):
        pool.check()
    pool._free.clear()
    with pytest.raises(AssertionError, match="lost"):
        pool.check()


def test_hashes_tell_contents_order_parents_and_salts_apart() -> None:
    root = salted_root("")
    names = [
        block_hash(root, [1, 2]),
        block_hash(root, [2, 1]),
        block_hash(root, [1, 2 << 8]),
        block_hash(root, [1 + (2 << 8)]),
        block_hash(salted_root("a"), [1, 2]),
        block_hash(block_hash(root, [1, 2]), [1, 2]),
    ]
    assert len(set(names)) == len(names)
    assert {len(name) for name in names} == {16}
    assert block_hash(root, [1, 2]) == names[0]
