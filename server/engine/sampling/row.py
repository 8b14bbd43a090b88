"""What besides its logits decides a row's token, and who may look on. Plain data."""

from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from server.engine.params import SamplingParams
from server.engine.sampling.state import DecodingState

Observe = Callable[[str, Sequence[int], Tensor, Tensor], None]
"""(stage, indices of the rows it worked on, their logits before, their logits after); see `sampler.choose`."""


class Row(NamedTuple):
    """One choice to be made. A tuple, as one is made for every token: it costs a third of a frozen dataclass."""

    params: SamplingParams
    position: int  # where the chosen token will stand in its sequence
    withheld: tuple[int, ...] = ()  # ending tokens, while min_tokens is not reached
    state: DecodingState | None = None  # None when `DecodingState.of` says that none is needed
    mask: NDArray[np.int32] | None = None  # a grammar's [ceil(vocab / 32)] words, lowest bit first, set = allowed


def observe_nothing(stage: str, indices: Sequence[int], before: Tensor, after: Tensor) -> None:
    """The observer of those who do not look. It is never called."""
