"""What an engine can say about itself: who holds which block, and what the prefix cache is made of.

Plain data and integers only; contents appear as hashes, and only those under a salt that the asker proves to own.
"""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import chain, islice

from server.engine.block_pool import BLOCK_SIZE, BlockPool
from server.engine.scheduler import Scheduler
from server.engine.sequence import Sequence


@dataclass(frozen=True)
class SequenceBlocks:
    """A sequence's block table. `blocks` is cut at the limit of the question; `num_blocks` is the truth."""

    id: int
    is_running: bool
    num_prompt_tokens: int
    num_output_tokens: int
    num_computed_tokens: int
    num_blocks: int
    blocks: tuple[int, ...]


@dataclass(frozen=True)
class PrefixBlock:
    """A block that can be found by its contents: a node of the prefix tree."""

    block: int
    content: bytes  # hash of its tokens and of every token before them
    parent: bytes | None  # the same of the block before it; None for the first of a prompt
    num_references: int
    eviction_rank: int | None  # 0 is the least recently used of all cached blocks; None while referenced


@dataclass(frozen=True)
class Inspection:
    """The pool between two steps, as one asker may see it. free + cached + referenced = all blocks.

    Lists are cut at the limit of the question. Counts are of everything.
    """

    num_blocks: int
    num_free: int
    num_cached: int
    num_referenced: int
    num_sequences: int
    sequences: tuple[SequenceBlocks, ...]  # the asker's, in the order they will run
    num_other_sequences: int
    others: tuple[int, ...]  # blocks held by each of the others' sequences
    num_prefix_blocks: int  # the asker's
    prefix_blocks: tuple[PrefixBlock, ...]  # parents first, the most recently used before others


@dataclass(frozen=True)
class _Origin:
    """Where a published block's contents come from: the pool itself knows only their hash."""

    parent: bytes | None
    salt: str


class Lineage:
    """Remembers, by content hash, the parents and the salt of blocks whose sequences are gone."""

    def __init__(self, pool: BlockPool) -> None:
        self._pool = pool
        self._origins: dict[bytes, _Origin] = {}

    def note(self, sequence: Sequence) -> None:
        """A sequence is about to leave; what it published may stay behind."""
        self._origins.update(_origins_of(sequence))
        # Evictions are not told of: forget them all at once, when they may have become the larger part.
        if len(self._origins) > 2 * self._pool.num_blocks:
            self._origins = {
                content: origin for content, origin in self._origins.items() if self._pool.is_published(content)
            }

    def parents(self, alive: Iterable[Sequence], salt_prefix: str) -> dict[bytes, bytes | None]:
        """Parent by hash, of everything ever published under such a salt that may still be there."""
        origins = self._origins.copy()
        for sequence in alive:
            origins.update(_origins_of(sequence))
        return {content: origin.parent for content, origin in origins.items() if origin.salt.startswith(salt_prefix)}


def inspect(scheduler: Scheduler, lineage: Lineage, salt_prefix: str, limit: int) -> Inspection:
    """What an asker may see, with at most `limit` entries, and block ids, in each list.

    A sequence is the asker's when its cache salt begins with `salt_prefix`. Of others nothing is told but how many
    blocks they hold.
    """
    pool = scheduler.pool
    everyone = [*scheduler.running, *scheduler.waiting]
    own = [one for one in everyone if one.request.cache_salt.startswith(salt_prefix)]
    others = [len(one.blocks) for one in everyone if not one.request.cache_salt.startswith(salt_prefix)]
    num_prefix_blocks, prefix_blocks = _prefix_blocks(pool, lineage.parents(everyone, salt_prefix), limit)
    return Inspection(
        num_blocks=pool.num_blocks,
        num_free=pool.num_free,
        num_cached=pool.num_cached,
        num_referenced=pool.num_blocks - pool.num_available,
        num_sequences=len(own),
        sequences=tuple(_tables(own[:limit], scheduler.running, limit)),
        num_other_sequences=len(others),
        others=tuple(others[:limit]),
        num_prefix_blocks=num_prefix_blocks,
        prefix_blocks=tuple(prefix_blocks),
    )


def _origins_of(sequence: Sequence) -> dict[bytes, _Origin]:
    """Of every full block it may have published, in order; none for one that never ran."""
    if sequence.scheduled_at is None:
        return {}
    hashes = sequence.hashes(sequence.num_tokens // BLOCK_SIZE)
    salt = sequence.request.cache_salt
    return {content: _Origin(parent, salt) for parent, content in zip((None, *hashes), hashes, strict=False)}


def _tables(sequences: Iterable[Sequence], running: Iterable[Sequence], limit: int) -> Iterator[SequenceBlocks]:
    """`limit` is of all block ids together."""
    room = limit
    running_ids = {sequence.request.id for sequence in running}
    for sequence in sequences:
        blocks = tuple(sequence.blocks[:room])
        room -= len(blocks)
        yield SequenceBlocks(
            id=sequence.request.id,
            is_running=sequence.request.id in running_ids,
            num_prompt_tokens=sequence.num_prompt,
            num_output_tokens=sequence.num_outputs,
            num_computed_tokens=sequence.num_computed,
            num_blocks=len(sequence.blocks),
            blocks=blocks,
        )


def _prefix_blocks(pool: BlockPool, parents: dict[bytes, bytes | None], limit: int) -> tuple[int, list[PrefixBlock]]:
    """How many of `parents` the pool still knows, and of them first those referenced, then the most recently used.

    A sequence gives its blocks back last to first, so a parent was always used after its children.
    """
    content_of = {block: content for content in parents for block in pool.match((content,))}
    # The order of eviction is the pool's own business everywhere but here, where it is told and not used.
    ranks = {block: rank for rank, block in enumerate(pool.eviction_order())}
    in_use = (block for block in content_of if block not in ranks)
    cached = (block for block in reversed(ranks) if block in content_of)
    return len(content_of), [
        PrefixBlock(block, content_of[block], parents[content_of[block]], pool.references(block), ranks.get(block))
        for block in islice(chain(in_use, cached), limit)
    ]
