"""Seeds of choices."""

from hypothesis import given
from hypothesis import strategies as st

from server.api.random_bits import RandomBits
from server.api.seeds import derive_seed

SEEDS = st.integers(0, 2**64 - 1)


@given(SEEDS)
def test_the_first_choice_has_the_requests_own_seed(seed: int) -> None:
    assert derive_seed(seed, 0) == seed


@given(SEEDS)
def test_the_choices_of_a_request_have_different_seeds_in_range(seed: int) -> None:
    seeds = [derive_seed(seed, index) for index in range(300)]
    assert len(set(seeds)) == 300
    assert all(0 <= other < 2**64 for other in seeds)


def test_derived_seeds_are_splitmix64() -> None:
    # The published test vector: a SplitMix64 generator seeded with 1234567 gives these as its first outputs.
    assert [derive_seed(1234567, index) for index in (1, 2, 3)] == [
        6457827717110365317,
        3203168211198807973,
        9817491932198370423,
    ]


def test_random_bits_are_64_and_no_two_alike() -> None:
    bits = RandomBits()
    drawn = [bits() for _ in range(1000)]  # several batches
    assert len(set(drawn)) == len(drawn)
    assert 2**63 <= max(drawn) < 2**64
