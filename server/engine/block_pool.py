"""Who owns which KV block: reference counts, content hashes and LRU eviction. Integers only, no tensors."""

import hashlib
from collections import OrderedDict, deque
from collections.abc import Sequence

BLOCK_SIZE = 16  # tokens

ROOT_HASH = b""


def block_hash(parent: bytes, tokens: Sequence[int]) -> bytes:
    """The content address of a full block: its tokens and, through `parent`, every token before them.

    128 bits of BLAKE2b, so that one tenant cannot construct a collision with another's prefix.
    """
    content = b"".join(token.to_bytes(4, "little") for token in tokens)
    return hashlib.blake2b(parent + content, digest_size=16).digest()


def salted_root(salt: str) -> bytes:
    """The parent of a sequence's first block: sequences with different salts never share one."""
    return hashlib.blake2b(salt.encode(), digest_size=16).digest()


class BlockPool:
    """A block is free, cached (unreferenced, kept for its contents) or referenced; the three always add up to all.

    `allocate` and `release` are the only ways in and out of a sequence's hands. A block is published under its hash
    only when every token in it is final; a later sequence with the same prefix then takes it by `share`.
    """

    def __init__(self, num_blocks: int) -> None:
        self.num_blocks = num_blocks
        self._free = deque(range(num_blocks))
        self._cached: OrderedDict[int, None] = OrderedDict()  # least recently used first
        self._references = [0] * num_blocks
        self._hash_of: dict[int, bytes] = {}
        self._block_of: dict[bytes, int] = {}

    @property
    def num_free(self) -> int:
        return len(self._free)

    @property
    def num_cached(self) -> int:
        return len(self._cached)

    @property
    def num_available(self) -> int:
        """Blocks that `allocate` could hand out now."""
        return len(self._free) + len(self._cached)

    def references(self, block: int) -> int:
        return self._references[block]

    def eviction_order(self) -> tuple[int, ...]:
        """The cached blocks, those that would be evicted first before the others."""
        return tuple(self._cached)

    def allocate(self) -> int:
        """A block with no contents and one reference; evicts the least recently used cached one if none is free.

        Raises IndexError when every block is referenced: callers check `num_available` first.
        """
        if self._free:
            block = self._free.popleft()
        else:
            if not self._cached:
                raise IndexError("every block is referenced")
            block, _ = self._cached.popitem(last=False)
            self._forget(block)
        self._references[block] = 1
        return block

    def match(self, hashes: Sequence[bytes]) -> list[int]:
        """The blocks that hold the longest known prefix of `hashes`. Takes no reference: see `share`."""
        blocks = []
        for content in hashes:
            block = self._block_of.get(content)
            if block is None:
                break
            blocks.append(block)
        return blocks

    def share(self, block: int) -> None:
        """Take a further reference to a published block."""
        if self._references[block] == 0:
            del self._cached[block]
        self._references[block] += 1

    def publish(self, block: int, content: bytes) -> None:
        """Make a full block findable by its hash. The first block published under a hash keeps it."""
        if content not in self._block_of and block not in self._hash_of:
            self._block_of[content] = block
            self._hash_of[block] = content

    def release(self, blocks: Sequence[int]) -> None:
        """Drop one reference of each. Published ones stay cached, the last of `blocks` to be evicted first."""
        for block in reversed(blocks):
            assert self._references[block] > 0, f"block {block} released more often than taken"
            self._references[block] -= 1
            if self._references[block] == 0:
                if block in self._hash_of:
                    self._cached[block] = None
                else:
                    self._free.append(block)

    def withdraw(self, blocks: Sequence[int]) -> None:
        """Make `blocks` unfindable: their contents turned out to be unusable."""
        for block in blocks:
            if block in self._hash_of:
                self._forget(block)
            if block in self._cached:
                del self._cached[block]
                self._free.append(block)

    def is_published(self, content: bytes) -> bool:
        return content in self._block_of

    def check(self) -> None:
        """Assert conservation: free + cached + referenced = total, without overlap."""
        free, cached = set(self._free), set(self._cached)
        referenced = {block for block, count in enumerate(self._references) if count}
        assert len(free) == len(self._free), "a block is free twice"
        assert free.isdisjoint(cached), "a block is free and cached"
        assert referenced.isdisjoint(free | cached), "a referenced block is up for taking"
        assert len(free) + len(cached) + len(referenced) == self.num_blocks, "a block is lost"
        assert cached <= self._hash_of.keys(), "a cached block has no hash"
        assert {content: block for block, content in self._hash_of.items()} == self._block_of, "hash index is torn"

    def _forget(self, block: int) -> None:
        del self._block_of[self._hash_of.pop(block)]
