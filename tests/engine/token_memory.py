"""A stand-in for the runner whose cache holds token ids, and whose next token hashes whatever the blocks then hold.

Any double owner, stale block or wrong prefix hit changes the output. `expected_result` needs no engine at all.
"""

import hashlib
from collections.abc import Sequence

import numpy as np
import torch
from engine_driver import Result

from model.paged import Span
from server.engine.block_pool import BLOCK_SIZE
from server.engine.runner import StepResult
from server.engine.types import SequenceRequest

_EMPTY = -1


def next_token(tokens: Sequence[int], vocab_size: int) -> int:
    """A function of every token and of their order."""
    digest = hashlib.blake2b(np.asarray(tokens, dtype=np.int64).tobytes(), digest_size=8).digest()
    return int.from_bytes(digest, "little") % vocab_size


def expected_result(request: SequenceRequest, vocab_size: int, eos: tuple[int, ...]) -> Result:
    """What the request must get, greedily, by a loop over its tokens."""
    tokens, params = list(request.prompt), request.params
    ends = {*(() if params.ignore_eos else eos), *params.stop_token_ids}
    result = Result(finish_reason="length")
    while len(result.tokens) < params.max_tokens:
        token = next_token(tokens, vocab_size)
        tokens.append(token)
        result.tokens.append(token)
        if token in ends:
            result.finish_reason, result.stop_token = "stop", token
            break
    return result


class _Cache:
    def __init__(self, slots: np.ndarray[tuple[int, int], np.dtype[np.int64]]) -> None:
        self._slots = slots

    def scrub(self, blocks: Sequence[int]) -> None:
        self._slots[list(blocks)] = _EMPTY


class TokenMemory:
    """Runs like a Runner; checks the limits of every step while at it."""

    def __init__(self, num_blocks: int, vocab_size: int, limits: tuple[int, int]) -> None:
        self.slots = np.full((num_blocks, BLOCK_SIZE), _EMPTY, dtype=np.int64)
        self.cache = _Cache(self.slots)
        self.num_tokens_run = 0
        self._vocab_size = vocab_size
        self._max_running, self._max_step_tokens = limits

    def run(self, tokens: Sequence[int], spans: Sequence[Span], wanted: Sequence[int]) -> StepResult:
        assert len(tokens) == sum(span.length for span in spans) <= self._max_step_tokens
        assert 0 < len(spans) <= self._max_running
        assert all(span.length > 0 for span in spans)
        self.num_tokens_run += len(tokens)
        places = [(span, span.start + offset) for span in spans for offset in range(span.length)]
        for token, (span, position) in zip(tokens, places, strict=True):
            self.slots[span.blocks[position // BLOCK_SIZE], position % BLOCK_SIZE] = token
        logits = torch.zeros(len(wanted), self._vocab_size)
        for row, index in enumerate(wanted):
            span, position = places[index]
            logits[row, next_token(self._read(span, position + 1), self._vocab_size)] = 1.0
        return StepResult(logits, 0.0, [True] * len(tokens))

    def _read(self, span: Span, count: int) -> list[int]:
        """A sequence's first `count` tokens, through its block table."""
        table = list(span.blocks[: -(-count // BLOCK_SIZE)])
        held: list[int] = self.slots[table].ravel()[:count].tolist()
        return held
