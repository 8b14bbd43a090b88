"""What can be measured of finished texts: how varied each is, and how alike two are. Tokens and numbers only."""

import math
from collections.abc import Hashable, Sequence

# Of the n-grams whose repetition is counted, as Welleck et al. 2020 do.
REPETITION_NGRAM = 4


def distinct(tokens: Sequence[Hashable], n: int) -> float | None:
    """The share of n-grams that differ (Li et al. 2016, "A diversity-promoting objective function for neural
    conversation models", section 5.2, over tokens and by the number of n-grams); None where there is none."""
    count = len(tokens) - n + 1
    return len({tuple(tokens[start : start + n]) for start in range(count)}) / count if count > 0 else None


def repetition_rate(tokens: Sequence[Hashable]) -> float | None:
    """The share of 4-grams that the text has had before: seq-rep-4 of Welleck et al. 2020, "Neural text generation
    with unlikelihood training", section 6; None for fewer than 4 tokens."""
    varied = distinct(tokens, REPETITION_NGRAM)
    return None if varied is None else 1.0 - varied


def perplexity(mean_logprob: float) -> float | None:
    """exp(-mean); None beyond the largest double."""
    try:
        return math.exp(-mean_logprob)
    except OverflowError:
        return None


def mean(values: Sequence[float]) -> float | None:
    return math.fsum(values) / len(values) if values else None


def first_divergence(one: Sequence[Hashable], other: Sequence[Hashable]) -> int | None:
    """The first position at which the two differ, one of them ending there included; None for equal ones."""
    for position, (a, b) in enumerate(zip(one, other, strict=False)):
        if a != b:
            return position
    return None if len(one) == len(other) else min(len(one), len(other))


def similarity(one: Sequence[Hashable], other: Sequence[Hashable]) -> float:
    """2 * LCS / (length + length), LCS the longest common subsequence: 1 for equal texts, 0 for nothing in common.

    That is 1 minus the number of insertions and deletions from one to the other over the most there could be.
    """
    total = len(one) + len(other)
    return 2 * _common_subsequence(one, other) / total if total else 1.0


def _common_subsequence(one: Sequence[Hashable], other: Sequence[Hashable]) -> int:
    """The length of the longest one, by whole rows of its table as the bits of an integer (Hyyrö 2004, "Bit-parallel
    LCS-length computation revisited"): a thousand tokens against a thousand take a millisecond, without a library."""
    places: dict[Hashable, int] = {}
    for position, token in enumerate(one):
        places[token] = places.get(token, 0) | 1 << position
    every = (1 << len(one)) - 1
    unmatched = every
    for token in other:
        matching = unmatched & places.get(token, 0)
        unmatched = (unmatched + matching | unmatched - matching) & every
    return len(one) - unmatched.bit_count()
