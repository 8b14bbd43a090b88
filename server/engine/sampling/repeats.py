"""Which tokens would repeat what a sequence says already, or complete a forbidden one. Arrays in, arrays out."""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from server.engine.sampling.ranges import MAX_MATCH

Tokens = NDArray[np.int32]
# A penalty this high is out of any logit's reach, and a sum with it still divides by the coldest temperature.
MAX_DRY_PENALTY = 1e6


def continuations(tokens: Tokens, longest: int) -> tuple[Tokens, NDArray[np.int64]]:
    """Tokens [n] that followed earlier occurrences of the sequence's end, and how long each occurrence is [n].

    An occurrence is as long as the sequence before it equals the end of `tokens`, at least 1 and at most `longest`.
    """
    last = len(tokens) - 1
    ends = np.flatnonzero(tokens[:-1] == tokens[-1]) if longest > 0 else np.empty(0, dtype=np.int64)
    lengths = np.ones(len(ends), dtype=np.int64)
    growing = np.arange(len(ends))
    for length in range(1, longest):
        growing = growing[ends[growing] >= length]
        growing = growing[tokens[ends[growing] - length] == tokens[last - length]]
        if not len(growing):
            break
        lengths[growing] = length + 1
    return tokens[ends + 1], lengths


def dry_penalties(
    tokens: Tokens, unbroken: int, multiplier: float, base: float, allowed_length: int
) -> dict[int, float]:
    """What DRY subtracts from which tokens' logits: multiplier * base ** (length - allowed_length) for the longest
    match a token would extend, if that has at least the allowed length (p-e-w 2024,
    https://github.com/oobabooga/text-generation-webui/pull/5677).

    `unbroken` is the number of tokens since the last sequence breaker: no match reaches beyond. A match counts as at
    most `MAX_MATCH` long.
    """
    if len(tokens) < 2:
        return {}
    following, lengths = continuations(tokens, min(unbroken, MAX_MATCH))
    longest: dict[int, int] = {}
    for token, length in zip(following.tolist(), lengths.tolist(), strict=True):
        if length >= allowed_length:
            longest[token] = max(length, longest.get(token, 0))
    return {
        token: min(multiplier * base ** (length - allowed_length), MAX_DRY_PENALTY) for token, length in longest.items()
    }


def repeated_ngrams(tokens: Tokens, size: int) -> list[int]:
    """Tokens that would complete an n-gram of that size a second time (Paulus et al. 2018; Klein et al. 2017)."""
    if size == 1:
        return [int(token) for token in np.unique(tokens)]
    if len(tokens) < size:
        return []
    following, lengths = continuations(tokens, size - 1)
    return [int(token) for token in np.unique(following[lengths == size - 1])]


def completed_words(tokens: Tokens, words: Sequence[Tokens]) -> list[int]:
    """The last tokens of those words whose other tokens the sequence ends with."""
    begun = (word for word in words if len(word) <= len(tokens) + 1)
    return [int(word[-1]) for word in begun if np.array_equal(tokens[len(tokens) + 1 - len(word) :], word[:-1])]
