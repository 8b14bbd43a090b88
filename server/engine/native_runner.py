"""Runs a model by the native CPU back end: a whole step is one call."""

import time
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from model.config import ModelConfig
from model.native.native_model import Draws, Limit, NativeModel
from model.native.observed import Observed
from model.paged import Span
from server.engine.multi_step import Passes
from server.engine.runner import StepResult
from server.engine.tracing_inside import Watch

# Rows of logits whose memory is kept: those of many sequences with their drafts. A prompt that is described asks for as
# many as a step has tokens; with a large vocabulary a hundred megabytes would stay behind.
_MOST_KEPT = 256


class NativeRunner:
    """A lowered model with its pages."""

    def __init__(self, model: NativeModel, clock: Callable[[], float] = time.monotonic) -> None:
        self._model = model
        self._clock = clock
        self._logits = torch.empty(0, model.lowering.config.vocab_size)

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
        logits, is_finite = self._model.run(tokens, spans, wanted, observed, self._room(len(wanted)))
        seconds = self._clock() - started
        if watch is not None and observed is not None:
            _show(watch, self.config, observed)
        return StepResult(logits, seconds, is_finite[: len(tokens)], is_finite[len(tokens) :])

    def decode(self, tokens: Sequence[int], spans: Sequence[Span], draws: Draws, limit: Limit) -> Passes:
        """See `multi_step.Decode`."""
        count = len(tokens)
        done = self._model.decode(tokens, spans, draws, limit, self._room(count))
        result = StepResult(done.logits, done.forward_seconds, done.is_finite[:count], done.is_finite[count:])
        chosen = [tuple(done.tokens[i::count]) for i in range(count)] if done.tokens else ()
        return Passes(chosen, done.num_passes, result, done.choose_seconds)

    def _room(self, num_rows: int) -> Tensor:
        """Logits [num_rows, vocab] to be filled. The same memory for every step: new pages for as many numbers each
        time cost more than the sampler."""
        if num_rows > _MOST_KEPT:
            return torch.empty(num_rows, self.config.vocab_size)
        if num_rows > len(self._logits):
            self._logits = torch.empty(num_rows, self.config.vocab_size)
        return self._logits[:num_rows]

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
