"""The engine's state of one sequence: its tokens, how many are computed, and the blocks that hold them. No tensors."""

from collections.abc import Sequence as Items

from server.engine.block_pool import BLOCK_SIZE, block_hash, salted_root
from server.engine.types import SequenceRequest


class Sequence:
    """A request's tokens so far (prompt, then output) and what of them is in the KV cache."""

    def __init__(self, request: SequenceRequest) -> None:
        self.request = request
        self.tokens = list(request.prompt)
        self.num_prompt = len(request.prompt)
        self.num_computed = 0
        self.blocks: list[int] = []
        self.num_published = 0  # leading blocks already offered to the prefix cache
        self.num_prompt_logprobs = 0  # prompt positions whose logprobs have been reported, the first (null) not counted
        self.num_cached_tokens: int | None = None  # prefix-cache hit of the first admission
        self.scheduled_at: float | None = None
        self.may_draft = True  # until a draft made its logits other than finite
        self.num_draft_computed = 0  # leading tokens in the draft model's cache, see `draft_model`
        self.is_held = False  # its logits are kept for a choice made together with other sequences: nothing to compute
        self._hashes = [salted_root(request.cache_salt)]

    @property
    def num_tokens(self) -> int:
        return len(self.tokens)

    @property
    def num_outputs(self) -> int:
        return len(self.tokens) - self.num_prompt

    @property
    def num_remaining(self) -> int:
        """Tokens it may still get."""
        return self.request.params.max_tokens - self.num_outputs

    @property
    def num_pending(self) -> int:
        """Tokens whose keys and values are not in the cache yet."""
        return len(self.tokens) - self.num_computed

    def hashes(self, num_blocks: int) -> Items[bytes]:
        """The content addresses of the first `num_blocks` blocks, which must be full."""
        assert num_blocks * BLOCK_SIZE <= len(self.tokens)
        while len(self._hashes) <= num_blocks:
            start = (len(self._hashes) - 1) * BLOCK_SIZE
            self._hashes.append(block_hash(self._hashes[-1], self.tokens[start : start + BLOCK_SIZE]))
        return self._hashes[1 : num_blocks + 1]

    @property
    def max_shared_blocks(self) -> int:
        """How many leading blocks may come from the prefix cache.

        Never the last token's: its logits are needed. With prompt logprobs only what has been reported already.
        """
        wants_logits = self.request.params.prompt_logprobs is not None
        usable = min(self.num_prompt_logprobs, self.num_tokens - 1) if wants_logits else self.num_tokens - 1
        return max(usable, 0) // BLOCK_SIZE

    def fork(self, request: SequenceRequest) -> "Sequence":
        """Another sequence with the same tokens. Nothing of it is computed: admission gives it this one's full blocks,
        and it computes those of the last block anew, to the same bits."""
        copy = Sequence(request)
        copy.tokens = list(self.tokens)
        copy._hashes = list(self._hashes)
        copy.may_draft = self.may_draft
        return copy

    def forget_cache(self) -> list[int]:
        """Preempted: nothing is computed any more. Returns the blocks to release."""
        blocks, self.blocks = self.blocks, []
        self.num_computed = self.num_published = self.num_draft_computed = 0
        return blocks


def blocks_for(num_tokens: int) -> int:
    """How many blocks hold `num_tokens` tokens."""
    return -(-num_tokens // BLOCK_SIZE)
