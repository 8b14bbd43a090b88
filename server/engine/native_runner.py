"""Runs a model by the native CPU back end: a whole step is one call."""

import time
from collections.abc import Callable, Sequence

from model.config import ModelConfig
from model.native.native_model import NativeModel
from model.native.observed import Observed
from model.paged import Span
from server.engine.runner import StepResult
from server.engine.tracing_inside import Watch


class NativeRunner:
    """A lowered model with its pages."""

    def __init__(self, model: NativeModel, clock: Callable[[], float] = time.monotonic) -> None:
        self._model = model
        self._clock = clock

    @property
    def config(self) -> ModelConfig:
        """Of the model."""
        return self._model.lowering.config

    def run(
        self, tokens: Sequence[int], spans: Sequence[Span], wanted: Sequence[int], watch: Watch | None = None
    ) -> StepResult:
        """See `Runner.run`."""
        observed = None if watch is None else _observed(self.config, len(tokens), watch)
        started = self._clock()
        logits, is_finite = self._model.run(tokens, spans, wanted, observed)
        seconds = self._clock() - started
        if watch is not None and observed is not None:
            _show(watch, self.config, observed)
        return StepResult(logits, seconds, is_finite[: len(tokens)], is_finite[len(tokens) :])

    def scrub(self, blocks: Sequence[int]) -> None:
        """See `Runner.scrub`."""
        self._model.scrub(blocks)


def _observed(config: ModelConfig, num_rows: int, watch: Watch) -> Observed:
    positions = {view.row: view.position for view in watch.attention(config)}
    return Observed(config, num_rows, bool(watch.routing(config)), positions)


def _show(watch: Watch, config: ModelConfig, observed: Observed) -> None:
    for view in watch.routing(config):
        for experts, weights in zip(observed.chosen[:, view.row], observed.gates[:, view.row], strict=True):
            view.routed(experts.tolist(), weights.tolist())
    for view in watch.attention(config):
        for layer in observed.attention[view.row]:
            view.attended(layer)
