"""The order of windows and the cutting of batches."""

import numpy as np
import pytest

from training.config import TrainingError
from training.dataset import WindowOrder, cut, whole_windows


def test_an_epoch_visits_adjacent_windows_once_each() -> None:
    order = WindowOrder(num_tokens=1000, context=10, seed=3)
    starts = sorted(order.starts(0, order.windows_per_epoch).tolist())
    assert np.diff(starts).tolist() == [10] * (order.windows_per_epoch - 1)
    assert starts[0] < 10
    assert starts[-1] + 10 < 1000


def test_the_order_is_the_same_however_it_is_asked_for() -> None:
    whole = WindowOrder(500, 7, seed=1).starts(0, 200).tolist()
    order = WindowOrder(500, 7, seed=1)
    pieces = [start for first in range(0, 200, 5) for start in order.starts(first, 5).tolist()]
    assert pieces == whole
    assert WindowOrder(500, 7, seed=1).starts(150, 50).tolist() == whole[150:]


def test_epochs_and_seeds_differ() -> None:
    order = WindowOrder(1000, 10, seed=0)
    size = order.windows_per_epoch
    assert order.starts(0, size).tolist() != order.starts(size, size).tolist()
    assert order.starts(0, size).tolist() != WindowOrder(1000, 10, seed=1).starts(0, size).tolist()


def test_targets_are_the_inputs_one_token_later() -> None:
    tokens = np.arange(100, dtype=np.int32)
    batch = cut(tokens, np.array([3, 50]), 8)
    assert batch.inputs.tolist() == [list(range(3, 11)), list(range(50, 58))]
    assert (batch.targets - batch.inputs).unique().tolist() == [1]


@pytest.mark.parametrize("length", [2, 16, 17, 18, 64, 65, 99])
def test_validation_windows_predict_every_token_but_the_first_once(length: int) -> None:
    tokens = np.arange(length, dtype=np.int32)
    batches = list(whole_windows(tokens, context=16, size=3))
    targets = [target for batch in batches for target in batch.targets.flatten().tolist()]
    assert targets == list(range(1, length))
    assert all(len(batch.inputs) <= 3 for batch in batches)


def test_a_split_shorter_than_two_contexts_is_refused() -> None:
    WindowOrder(num_tokens=20, context=10, seed=0)
    with pytest.raises(TrainingError, match="19 tokens"):
        WindowOrder(num_tokens=19, context=10, seed=0)
