"""Tokens to batches: an endless, seeded order of windows that is a function of (seed, index). Knows no text."""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from training.config import TrainingError

TokenArray = NDArray[np.int32]


@dataclass(frozen=True)
class Batch:
    """Inputs and the tokens that follow them, both [sequences, context] int64."""

    inputs: Tensor
    targets: Tensor
    target_logits: Tensor | None = None  # what a target answers to the inputs, [sequences, context, vocab]


class WindowOrder:
    """Where window number i starts, for every i.

    Each epoch cuts the tokens into adjacent windows from a random phase on and visits them in a random order, so that
    every token is seen once per epoch and never twice at the same place of a window. The order depends on the seed
    alone: not on batch size, accumulation or number of workers; and to resume it takes one integer.
    """

    def __init__(self, num_tokens: int, context: int, seed: int, has_phase: bool = True) -> None:
        """Without a phase, every epoch has the same windows: the first begins at 0, and the last may end the text."""
        self.has_phase = has_phase
        self.windows_per_epoch = num_tokens // context - has_phase
        if self.windows_per_epoch < 1:
            raise TrainingError(f"the training split has {num_tokens} tokens; a context of {context} needs twice that")
        self.context = context
        self.seed = seed
        self._epoch = -1
        self._starts: NDArray[np.int64] = np.empty(0, dtype=np.int64)

    def starts(self, first: int, count: int) -> NDArray[np.int64]:
        """The starts of windows first .. first + count - 1, [count]."""
        return np.array([self._start(index) for index in range(first, first + count)], dtype=np.int64)

    def _start(self, index: int) -> int:
        epoch, place = divmod(index, self.windows_per_epoch)
        if epoch != self._epoch:
            random = np.random.default_rng([self.seed, epoch])
            phase = random.integers(self.context) if self.has_phase else 0
            self._starts = phase + self.context * random.permutation(self.windows_per_epoch)
            self._epoch = epoch
        return int(self._starts[place])


def cut(tokens: TokenArray, starts: NDArray[np.int64], context: int) -> Batch:
    """The windows of `context` tokens that begin at `starts`."""
    rows = tokens[starts[:, None] + np.arange(context + 1)].astype(np.int64)  # [sequences, context + 1]
    windows = torch.from_numpy(rows)
    return Batch(windows[:, :-1], windows[:, 1:])


def whole_windows(tokens: TokenArray, context: int, size: int) -> Iterator[Batch]:
    """Adjacent windows over all of `tokens`, `size` at a time; the last is shorter. Every token but the first is a
    target exactly once."""
    num_targets = len(tokens) - 1
    starts = np.arange(0, num_targets - num_targets % context, context)
    for first in range(0, len(starts), size):
        yield cut(tokens, starts[first : first + size], context)
    if num_targets % context:
        yield cut(tokens, np.array([num_targets - num_targets % context]), num_targets % context)
