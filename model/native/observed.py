"""What a native step tells of its inside to whoever watches: arrays that the library fills in. Knows no request."""

from collections.abc import Mapping

import numpy as np
from numpy.typing import NDArray

from model.config import ModelConfig

Float32Array = NDArray[np.float32]


class Observed:
    """Room for one step's routing, where `experts` are asked for, and for the attention of some of its rows.

    `attention` has the position of each of those rows.
    """

    def __init__(self, config: ModelConfig, num_rows: int, experts: bool, attention: Mapping[int, int]) -> None:
        routing = (config.num_layers, num_rows if experts else 0, config.num_experts_per_token)
        self.chosen = np.empty(routing, np.int32)  # [layers, rows, experts per token], best first
        self.gates = np.empty(routing, np.float32)  # their weights, which sum to 1
        heads = (config.num_layers, config.num_heads)
        # By row [layers, heads, position + 1]: how much each head attends to each token so far.
        self.attention: dict[int, Float32Array] = {
            row: np.empty((*heads, position + 1), np.float32) for row, position in attention.items()
        }
        self._by_row = np.zeros(num_rows if attention else 0, np.uintp)
        for row, weights in self.attention.items():
            self._by_row[row] = weights.ctypes.data

    @property
    def addresses(self) -> tuple[int | None, int | None, int | None]:
        """Of the experts, their weights, and the attention's arrays by row; None for what is not asked for."""
        chosen, gates, by_row = (
            array.ctypes.data if array.size else None for array in (self.chosen, self.gates, self._by_row)
        )
        return chosen, gates, by_row
