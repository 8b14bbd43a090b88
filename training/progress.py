"""How far a run has come, and the numbers of one step. Plain data: knows no tensors and no files."""

from dataclasses import dataclass
from typing import Protocol

from training.config import LengthOptions


@dataclass
class Progress:
    """Where a run stands.

    The order of data, dropout and samples are functions of the seed and the step, so that no generator's state has to
    be kept beside this.
    """

    step: int = 0
    seconds: float = 0.0  # of training alone
    num_evaluations: int = 0
    best_loss: float = float("inf")

    def fraction(self, length: LengthOptions) -> float:
        """How much of the run is done, 0 to 1, by steps or by seconds."""
        if length.max_steps is not None:
            return min(1.0, self.step / length.max_steps)
        assert length.max_seconds is not None
        return min(1.0, self.seconds / length.max_seconds)

    def evaluations_due(self, length: LengthOptions) -> int:
        """How many evaluations should have been made by now."""
        if length.max_steps is not None:  # in whole numbers: every resumption must agree on the steps
            return min(self.step, length.max_steps) * length.num_evaluations // length.max_steps
        return int(self.fraction(length) * length.num_evaluations)


@dataclass(frozen=True)
class RouterReport:
    """The routers of one step, averaged over the batch."""

    balance: float
    router_z: float
    expert_load: list[list[float]]  # share of the assignments, [layers][experts]


@dataclass(frozen=True)
class StepReport:
    """One step in numbers."""

    loss: float  # cross-entropy or divergence from the target, the mean over the batch
    rate_factor: float
    grad_norm: float  # before clipping
    router: RouterReport | None = None


@dataclass(frozen=True)
class Validation:
    """One evaluation in numbers."""

    loss: float  # nats per token, as StepReport's
    agreement: float | None = None  # with the target's first choices, 0 to 1; only where there is a target


class Observer(Protocol):
    """Whoever wants to hear how a run goes."""

    def on_step(self, progress: Progress, report: StepReport) -> None:
        """After every step."""

    def on_evaluation(self, progress: Progress, validation: Validation, sample: str, is_best: bool) -> None:
        """After every evaluation."""


class Nobody:
    """The observer of workers other than the first."""

    def on_step(self, progress: Progress, report: StepReport) -> None:
        """Says nothing."""

    def on_evaluation(self, progress: Progress, validation: Validation, sample: str, is_best: bool) -> None:
        """Says nothing."""
