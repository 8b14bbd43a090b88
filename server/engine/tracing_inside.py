"""Looks into the model while it computes: which experts a token is sent to, and what its heads attend to.

Says what it wants to see of a step and takes what it is shown. Knows nothing of who computes, nor how.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from model.config import ModelConfig
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

    def routed(self, experts: Sequence[int], weights: Sequence[float]) -> None:
        """The next layer sends the token to these experts, best first; the weights sum to 1."""
        self.experts.append(ExpertsTrace(tuple(experts), tuple(weights)))

    def attended(self, weights: NDArray[np.float32]) -> None:
        """The next layer's heads attend to the tokens so far, this one included: [heads, position + 1], sums 1."""
        self.attention.append(tuple(head.tobytes() for head in weights))


class Watch:
    """What is to be seen of one step. Attention beyond `max_weights` is left out, for whole tokens, last first."""

    def __init__(self, views: Sequence[View], max_weights: int = MAX_STEP_WEIGHTS) -> None:
        self._views = views
        self._max_weights = max_weights

    def routing(self, config: ModelConfig) -> list[View]:
        """The tokens whose experts are wanted."""
        return [view for view in self._views if view.options.experts] if config.num_experts else []

    def attention(self, config: ModelConfig) -> list[View]:
        """The tokens whose attention is wanted and may be told."""
        left = self._max_weights
        watched = []
        for view in self._views:
            if view.options.attention:
                left -= config.num_layers * config.num_heads * (view.position + 1)
                if left >= 0:
                    watched.append(view)
        return watched
