"""The counter-based generator against published vectors and a plain integer oracle, and the noise made from it."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from server.engine.noise import LANES, REACH, gumbel_noise, philox

WORD = st.integers(0, 2**32 - 1)

# Random123's known answers for Philox4x32-10: counter, key, output.
KNOWN_ANSWERS = [
    ("00000000 00000000 00000000 00000000", "00000000 00000000", "6627e8d5 e169c58d bc57ac4c 9b00dbd8"),
    ("ffffffff ffffffff ffffffff ffffffff", "ffffffff ffffffff", "408f276d 41c83b0e a20bc7c6 6d5451fd"),
    ("243f6a88 85a308d3 13198a2e 03707344", "a4093822 299f31d0", "d16cfe09 94fdcceb 5001e420 24126ea1"),
]


def words(text: str) -> list[int]:
    return [int(word, 16) for word in text.split()]


def plain_philox(counter: list[int], key: list[int]) -> list[int]:
    """One counter, in Python integers, as the paper writes it."""
    c0, c1, c2, c3 = counter
    k0, k1 = key
    for _ in range(10):
        first, second = 0xD2511F53 * c0, 0xCD9E8D57 * c2
        c0, c1, c2, c3 = (second >> 32) ^ c1 ^ k0, second & 0xFFFFFFFF, (first >> 32) ^ c3 ^ k1, first & 0xFFFFFFFF
        k0, k1 = (k0 + 0x9E3779B9) & 0xFFFFFFFF, (k1 + 0xBB67AE85) & 0xFFFFFFFF
    return [c0, c1, c2, c3]


def plain_noise(seed: int, position: int, token: int) -> float:
    lane = plain_philox([token // LANES, position, 0, 0], [seed & 0xFFFFFFFF, seed >> 32])[token % LANES]
    return -math.log(-math.log((lane + 0.5) / 2**32))


def noise_of(seed: int, position: int, vocab_size: int) -> torch.Tensor:
    """Noise of every token id, [vocab] float64."""
    counters = torch.arange(-(-vocab_size // LANES))
    signed = seed - 2**64 if seed >= 2**63 else seed
    seeds = torch.full_like(counters, signed)
    return gumbel_noise(seeds, torch.full_like(counters, position), counters).flatten()[:vocab_size]


@pytest.mark.parametrize(("counter", "key", "output"), KNOWN_ANSWERS)
def test_philox_gives_the_published_answers(counter: str, key: str, output: str) -> None:
    given_words = torch.tensor([*words(counter), *words(key)])[:, None]
    assert philox(given_words[:4], given_words[4:])[:, 0].tolist() == words(output)
    assert plain_philox(words(counter), words(key)) == words(output)


@given(st.lists(st.tuples(WORD, WORD, WORD, WORD, WORD, WORD), min_size=1, max_size=40))
@settings(deadline=None)
def test_philox_is_the_plain_one_for_any_counters_and_keys(columns: list[tuple[int, ...]]) -> None:
    table = torch.tensor(columns).T
    before = table.clone()
    expected = [plain_philox(list(column[:4]), list(column[4:])) for column in columns]
    assert philox(table[:4], table[4:]).T.tolist() == expected
    assert torch.equal(table, before), "the caller's counters or keys were changed"


@given(st.integers(0, 2**64 - 1), st.integers(0, 2**22), st.integers(1, 60))
@settings(deadline=None)
def test_noise_is_keyed_by_seed_position_and_token(seed: int, position: int, vocab_size: int) -> None:
    expected = [plain_noise(seed, position, token) for token in range(vocab_size)]
    assert noise_of(seed, position, vocab_size).tolist() == pytest.approx(expected, rel=1e-12)


def test_noise_does_not_depend_on_what_else_is_computed() -> None:
    """Bitwise, at every place in calls of every length, over several batches of counters."""
    counters = torch.arange(9001)
    seeds, positions = counters * 7919 - 3, counters % 313
    whole = gumbel_noise(seeds, positions, counters)
    for start, end in [(0, 1), (1, 2), (5, 22), (4090, 4105), (8000, 9001), (17, 9001), (0, 4097)]:
        assert torch.equal(gumbel_noise(seeds[start:end], positions[start:end], counters[start:end]), whole[start:end])


def test_reach_covers_the_whole_range_of_the_noise() -> None:
    """From the formula: the extreme 32-bit words are 0 and 2^32 - 1."""
    lowest, highest = (-math.log(-math.log((word + 0.5) / 2**32)) for word in (0, 2**32 - 1))
    assert lowest == pytest.approx(-math.log(33 * math.log(2)))
    assert highest == pytest.approx(33 * math.log(2))
    assert highest - lowest < REACH < highest - lowest + 0.2
