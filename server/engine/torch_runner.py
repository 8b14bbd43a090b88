"""Runs a model by its torch forward, on any device: the back end that everything else is compared with."""

import time
from collections.abc import Callable, Sequence

import torch

from model.config import ModelConfig
from model.gpt import GPT, ObserveRouting, ignore_routing
from model.kernels import padding
from model.paged import KVCache, Span, plan_attention
from model.paged_attention import paged_attend
from server.engine.runner import StepResult
from server.engine.torch_watch import watch_attention, watch_routing
from server.engine.tracing_inside import Watch


class TorchRunner:
    """A model with its cache. Rows of a step are padded to whole row tiles, see `model.kernels`."""

    def __init__(self, model: GPT, num_blocks: int, clock: Callable[[], float] = time.monotonic) -> None:
        weight = model.embedding.weight
        self.model = model
        self._clock = clock
        self.cache = KVCache(model.config, num_blocks, weight.dtype, weight.device)

    @property
    def config(self) -> ModelConfig:
        """Of the model."""
        return self.model.config

    @torch.inference_mode()
    def run(
        self, tokens: Sequence[int], spans: Sequence[Span], wanted: Sequence[int], watch: Watch | None = None
    ) -> StepResult:
        """See `Runner.run`."""
        device = self.cache.keys.device
        plan = plan_attention(spans, self.model.config, self.cache.num_blocks, device)
        positions = [position for span in spans for position in range(span.start, span.start + span.length)]
        pad = [0] * padding(len(tokens))
        flat = torch.tensor([[*tokens, *pad], [*positions, *pad]], device=device)
        rows = torch.tensor([*wanted, *[0] * padding(len(wanted))], dtype=torch.int64, device=device)
        started = self._clock()
        attend = paged_attend(self.cache, plan)
        observe: ObserveRouting = ignore_routing
        if watch is not None:
            attend = watch_attention(watch.attention(self.config), attend, self.cache, self.config)
            observe = watch_routing(watch.routing(self.config), self.config)
        hidden = self.model(flat[0], flat[1], attend, observe)
        logits = self.model.unembed(hidden[rows])[: len(wanted)]
        # A row's last layer carries every NaN and infinity of the ones below it: one sum per row tells. Reading it
        # also waits for a device that runs behind.
        is_finite = hidden[: len(tokens)].float().sum(-1).isfinite().tolist()
        return StepResult(logits, self._clock() - started, is_finite)

    def scrub(self, blocks: Sequence[int]) -> None:
        """See `Runner.scrub`."""
        self.cache.scrub(blocks)
