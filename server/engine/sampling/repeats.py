"""Which tokens would repeat what a sequence says already, or complete a forbidden one. Arrays in, arrays out.

What one more token costs is a few passes over the sequence in compiled code, whatever the sequence says.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from server.engine.sampling.ranges import MAX_MATCH, MAX_SEQUENCE_TOKENS

Tokens = NDArray[np.int32]
# A penalty this high is out of any logit's reach, and a sum with it still divides by the coldest temperature.
MAX_DRY_PENALTY = 1e6


@dataclass(frozen=True)
class Dry:
    """The parameters of DRY for one choice."""

    multiplier: float
    base: float
    allowed_length: int
    longest: int  # tokens since the last sequence breaker, at most MAX_MATCH: no match reaches beyond


@dataclass(frozen=True)
class Words:
    """Token sequences by what precedes their last token."""

    alone: NDArray[np.int64]  # sequences of one token
    _lasts: Mapping[tuple[int, ...], list[int]]
    _lengths: frozenset[int]  # of what precedes

    @classmethod
    def of(cls, words: Iterable[tuple[int, ...]]) -> "Words":
        lasts: dict[tuple[int, ...], list[int]] = {}
        for word in words:
            lasts.setdefault(word[:-1], []).append(word[-1])
        alone = np.array(lasts.pop((), []), dtype=np.int64)
        return cls(alone, lasts, frozenset(map(len, lasts)))

    def completed_by(self, tokens: Tokens) -> list[int]:
        """The last tokens of those sequences, of two tokens and more, whose other tokens `tokens` ends with."""
        end = tokens[-MAX_SEQUENCE_TOKENS:].tolist()
        return [last for length in self._lengths for last in self._lasts.get(tuple(end[-length:]), ())]


def match_lengths(tokens: Tokens) -> Tokens:
    """How long the sequence up to each token but the last equals the end of `tokens`, [tokens - 1].

    0 where the last token differs; exact up to MAX_MATCH, and beyond it at least that.
    """
    start = max(0, len(tokens) - MAX_MATCH)
    lengths = np.zeros(max(0, start - 1), dtype=np.int32)
    for end in range(start, len(tokens)):
        lengths = extended_matches(lengths, tokens[: end + 1])
    return lengths


def extended_matches(lengths: Tokens, tokens: Tokens) -> Tokens:
    """`match_lengths` of `tokens` [tokens - 1], from those without the last of them."""
    extended = np.ones(len(tokens) - 1, dtype=np.int32)
    extended[1:] += lengths
    extended *= tokens[:-1] == tokens[-1]
    return extended


def dry_penalties(tokens: Tokens, lengths: Tokens, dry: Dry) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
    """What DRY subtracts from which tokens' logits, both [penalised]: multiplier * base ** (length - allowed_length)
    for the longest match a token would extend, if that has at least the allowed length (p-e-w 2024,
    https://github.com/oobabooga/text-generation-webui/pull/5677).

    `lengths` are the `match_lengths` of a sequence that ends with `tokens`: no match reaches beyond them.
    """
    num_ends = max(0, len(tokens) - 1)
    within = np.minimum(lengths[len(lengths) - num_ends :], np.arange(1, num_ends + 1)).clip(max=dry.longest)
    matched = np.flatnonzero(within >= dry.allowed_length)
    following, places = np.unique(tokens[matched + 1], return_inverse=True)
    longest = np.zeros(len(following), dtype=np.int64)
    np.maximum.at(longest, places, within[matched])
    powers = (dry.multiplier * dry.base**excess for excess in range(MAX_MATCH))
    penalties = np.array([min(penalty, MAX_DRY_PENALTY) for penalty in powers])
    return following.astype(np.int64), penalties[longest - dry.allowed_length]


def repeated_ngrams(tokens: Tokens, lengths: Tokens, size: int) -> Tokens:
    """Tokens, some of them more than once, that would complete an n-gram of that size a second time (Paulus et al.
    2018; Klein et al. 2017). `lengths` are the `match_lengths` of `tokens`; a size of 1 needs none."""
    return tokens if size == 1 else tokens[1:][lengths >= size - 1]
