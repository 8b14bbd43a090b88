"""Runs the model over one step's chunks: integers in, logits out. The only engine file that touches the KV cache."""

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from model.gpt import GPT, ObserveRouting, ignore_routing
from model.kernels import padding
from model.paged import KVCache, Span, plan_attention
from model.paged_attention import paged_attend
from server.engine.tracing_inside import Watch


@dataclass(frozen=True)
class StepResult:
    """What the model made of a step's tokens."""

    logits: Tensor  # [wanted rows, vocab] float32
    forward_seconds: float  # in the model itself, without building its inputs
    is_finite: list[bool]  # per token: whether its hidden state is finite, and so its keys and values are


class Runner:
    """A model with its cache. Rows of a step are padded to whole row tiles, see `model.kernels`."""

    def __init__(self, model: GPT, num_blocks: int, clock: Callable[[], float] = time.monotonic) -> None:
        weight = model.embedding.weight
        self.model = model
        self._clock = clock
        self.cache = KVCache(model.config, num_blocks, weight.dtype, weight.device)

    @torch.inference_mode()
    def run(
        self, tokens: Sequence[int], spans: Sequence[Span], wanted: Sequence[int], watch: Watch | None = None
    ) -> StepResult:
        """Compute the step's tokens (the spans' tokens, concatenated), storing their keys and values.

        Only the rows `wanted` are unembedded. `watch` looks on, and changes nothing.
        """
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
            config = self.model.config
            attend, observe = watch.attending(attend, self.cache, config), watch.routing(config)
        hidden = self.model(flat[0], flat[1], attend, observe)
        logits = self.model.unembed(hidden[rows])[: len(wanted)]
        # A row's last layer carries every NaN and infinity of the ones below it: one sum per row tells. Reading it
        # also waits for a device that runs behind.
        is_finite = hidden[: len(tokens)].float().sum(-1).isfinite().tolist()
        return StepResult(logits, self._clock() - started, is_finite)
