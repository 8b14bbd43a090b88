"""Measures of texts against the plain way to compute them."""

import difflib
import math
import random

import numpy as np
import pytest
import torch

from server.api.text_metrics import distinct, first_divergence, mean, perplexity, repetition_rate, similarity
from server.engine.sampler import describe


def longest_common_subsequence(one: list[int], other: list[int]) -> int:
    """The textbook's table."""
    table = np.zeros((len(one) + 1, len(other) + 1), dtype=int)
    for i, a in enumerate(one):
        for j, b in enumerate(other):
            table[i + 1, j + 1] = table[i, j] + 1 if a == b else max(table[i, j + 1], table[i + 1, j])
    return int(table[-1, -1])


def random_texts(seed: int) -> tuple[list[int], list[int]]:
    generator = random.Random(seed)
    one, other = (
        [generator.randrange(generator.choice((2, 5, 50))) for _ in range(generator.randrange(90))] for _ in range(2)
    )
    return one, other


@pytest.mark.parametrize("seed", range(60))
def test_similarity_is_that_of_the_textbooks_table(seed: int) -> None:
    one, other = random_texts(seed)
    total = len(one) + len(other)
    expected = 2 * longest_common_subsequence(one, other) / total if total else 1.0
    assert similarity(one, other) == expected
    assert similarity(other, one) == expected
    assert similarity(one, other) >= difflib.SequenceMatcher(None, one, other, autojunk=False).ratio() - 1e-12


def test_similarity_is_1_for_equal_texts_and_0_for_nothing_in_common() -> None:
    assert similarity([1, 2, 3], [1, 2, 3]) == 1.0
    assert similarity([1, 2, 3], [4, 5]) == 0.0
    assert similarity([], []) == 1.0
    assert similarity([1], []) == 0.0


def test_texts_diverge_where_they_first_differ_or_where_one_ends() -> None:
    assert first_divergence([1, 2, 3], [1, 9, 3]) == 1
    assert first_divergence([1, 2], [1, 2, 3]) == 2
    assert first_divergence([], [1]) == 0
    assert first_divergence([1, 2], [1, 2]) is None


def test_distinct_is_the_share_of_different_n_grams() -> None:
    assert distinct([1, 1, 1, 2], 1) == 2 / 4
    assert distinct([1, 1, 1, 2], 2) == 2 / 3
    assert distinct([1], 2) is None
    assert distinct([], 1) is None


def test_repetition_rate_is_the_share_of_repeated_4_grams() -> None:
    assert repetition_rate([1, 2, 3, 4, 5]) == 0.0
    assert repetition_rate([1] * 8) == 1 - 1 / 5
    assert repetition_rate([1, 2, 3]) is None


def test_perplexity_is_the_exponential_and_nothing_beyond_a_double() -> None:
    assert perplexity(-2.0) == math.exp(2.0)
    assert perplexity(-9999.0) is None
    assert mean([]) is None
    assert mean([1.0, 2.0]) == 1.5


def test_entropy_is_that_of_the_whole_distribution_whoever_stands_beside_it() -> None:
    logits = torch.randn(7, 1001, generator=torch.Generator().manual_seed(1)) * 5
    logits[2, 100:] = -math.inf
    logits[3, :] = 0.0
    exact = logits.double().numpy()
    probabilities = np.exp(exact - exact.max(-1, keepdims=True))
    probabilities /= probabilities.sum(-1, keepdims=True)
    logarithms = np.log(probabilities, out=np.zeros_like(probabilities), where=probabilities > 0)
    expected = -(probabilities * logarithms).sum(-1)
    together = [entry.entropy for entry in describe(logits, [0] * 7, [0] * 7)]
    alone = [describe(logits[row : row + 1], [0], [0])[0].entropy for row in range(7)]
    assert together == alone
    assert together == pytest.approx(expected, rel=1e-6)
    assert together[3] == pytest.approx(math.log(1001), rel=1e-6)
