"""Runs a model by the native CPU back end: a whole step is one call."""

import time
from collections.abc import Callable, Sequence

from model.config import ModelConfig
from model.native.native_model import NativeModel
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
        started = self._clock()
        logits, is_finite = self._model.run(tokens, spans, wanted)
        return StepResult(logits, self._clock() - started, is_finite.tolist())

    def scrub(self, blocks: Sequence[int]) -> None:
        """See `Runner.scrub`."""
        self._model.scrub(blocks)
