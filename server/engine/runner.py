"""The seam between scheduling and computing: whoever holds a model with its cache and runs one step's chunks.

Integers in, logits out.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Protocol

from torch import Tensor

from model.config import ModelConfig
from model.paged import Span
from server.engine.tracing_inside import Watch


@dataclass(frozen=True)
class StepResult:
    """What the model made of a step's tokens."""

    logits: Tensor  # [wanted rows, vocab] float32, until the runner's next step
    forward_seconds: float  # in the model itself, without building its inputs
    is_finite: Sequence[int]  # per token: 0 unless its hidden state is finite, and so its keys and values are
    is_finite_logits: Sequence[int] | None = None  # the same of every row of the logits, where they were looked at

    @cached_property
    def finite_logits(self) -> Sequence[int]:
        """Per row of the logits: 0 unless they are finite."""
        if self.is_finite_logits is not None:
            return self.is_finite_logits
        told: list[int] = self.logits.sum(-1).isfinite().tolist()
        return told

    @property
    def is_all_finite(self) -> bool:
        """Whether every token's hidden state is, and every row of the logits."""
        return 0 not in self.is_finite and 0 not in self.finite_logits


class Runner(Protocol):
    """A model with its cache."""

    @property
    def config(self) -> ModelConfig:
        """Of the model."""
        ...

    def run(
        self, tokens: Sequence[int], spans: Sequence[Span], wanted: Sequence[int], watch: Watch | None = None
    ) -> StepResult:
        """Compute the step's tokens (the spans' tokens, concatenated), storing their keys and values.

        Only the rows `wanted` are unembedded. `watch` looks on, and changes nothing.
        """
        ...

    def scrub(self, blocks: Sequence[int]) -> None:
        """Zero the contents of `blocks`: a stale NaN would outlive its masking, as 0 * NaN is NaN."""
        ...
