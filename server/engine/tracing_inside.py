"""Looks into the model while it computes: which experts a token is sent to, and what its heads attend to.

It computes beside the model and hands on what it was given, so what the model computes stays as it is.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from model.attention import alibi_bias, attention_weights, visible_keys
from model.config import ModelConfig
from model.gpt import Attend, ObserveRouting
from model.paged import KVCache
from model.positions import alibi_slopes
from server.engine.tracing_types import ExpertsTrace, TraceOptions

# Attention weights of one step, as 4 bytes each: with the rest of a step's report they must fit into a message
# (`server.framing`). At the default of 64 running sequences it takes 131,072 for each of them to get there.
MAX_STEP_WEIGHTS = 2**23


@dataclass
class View:
    """One token of a step, as it is watched: where it stands, and what was seen by layer."""

    row: int  # of the step's flattened tokens
    position: int  # in its sequence
    blocks: Sequence[int]  # of its sequence
    options: TraceOptions
    experts: list[ExpertsTrace] = field(default_factory=list)
    attention: list[tuple[bytes, ...]] = field(default_factory=list)


class Watch:
    """Looks at some tokens of one step. Attention beyond `max_weights` is left out, for whole tokens, last first."""

    def __init__(self, views: Sequence[View], max_weights: int = MAX_STEP_WEIGHTS) -> None:
        self._views = views
        self._max_weights = max_weights

    def routing(self, config: ModelConfig) -> ObserveRouting:
        """Observes the routing of a model's forward pass."""
        watched = [view for view in self._views if view.options.experts]
        rows = [view.row for view in watched]

        def observe(layer: int, logits: Tensor) -> None:
            top_logits, experts = logits.topk(config.num_experts_per_token, dim=-1)  # [rows, chosen], as the model does
            weights = top_logits[rows].softmax(-1).tolist()
            for view, chosen, own in zip(watched, experts[rows].tolist(), weights, strict=True):
                view.experts.append(ExpertsTrace(tuple(chosen), tuple(own)))

        return observe

    def attending(self, attend: Attend, cache: KVCache, config: ModelConfig) -> Attend:
        """`attend`, watched: it stores the step's keys in `cache`, and then they are looked at there."""
        watched = self._affordable(config)

        def watched_attend(layer: int, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
            out = attend(layer, query, key, value)
            for view in watched:
                weights = paged_weights(query[view.row], cache.keys[layer], view, config)
                view.attention.append(tuple(head.numpy().tobytes() for head in weights.cpu()))
            return out

        return watched_attend if watched else attend

    def _affordable(self, config: ModelConfig) -> list[View]:
        left = self._max_weights
        watched = []
        for view in self._views:
            if view.options.attention:
                left -= config.num_layers * config.num_heads * (view.position + 1)
                if left >= 0:
                    watched.append(view)
        return watched


def paged_weights(query: Tensor, keys: Tensor, view: View, config: ModelConfig) -> Tensor:
    """How much a token attends to each so far, itself included: [heads, position + 1] float32, rows sum to 1.

    query [heads, head_dim], keys [kv_heads, blocks, 16, head_dim] of the whole cache. Written out, see
    `model.attention`: the kernel's sums round otherwise.
    """
    num_keys = view.position + 1
    num_blocks = -(-num_keys // keys.shape[2])
    own = keys[:, list(view.blocks[:num_blocks])].flatten(1, 2)[:, :num_keys]  # [kv_heads, keys, head_dim]
    own = own.repeat_interleave(config.num_groups, dim=0)
    at = torch.tensor([view.position], device=keys.device)
    positions = torch.arange(num_keys, device=keys.device)
    bias = None
    if config.positions == "alibi":
        bias = alibi_bias(alibi_slopes(config.num_heads).to(keys.device), at, positions)
    visible = visible_keys(at, positions, config.sliding_window)
    return attention_weights(query.unsqueeze(1), own, visible, bias)[:, 0]
