"""From a step's logits to tokens: the target is sampled at every drafted position, drafts are kept while they agree.

Each position is sampled with its own noise (design, section 4), so the tokens are those of decoding without drafts,
which is this with none. Knows no scheduler and no cache.
"""

from collections.abc import Iterable, Sequence
from typing import TypeVar

from torch import Tensor

from server.engine.decoding import Verification
from server.engine.sampler import Observe, choose, describe, observe_nothing
from server.engine.types import TokenLogprob

T = TypeVar("T")


def verify(logits: Tensor, verifications: Iterable[Verification], observe: Observe = observe_nothing) -> None:
    """Give every sequence its tokens of this step; logits [rows, vocab] float32, left as they are.

    Rows are sampled in rounds: a sequence whose choices depend on its history gets one token a round.
    """
    going_on = list(verifications)
    while going_on:
        ready = [one.ready_rows() for one in going_on]
        index = [
            one.first_row + len(one.tokens) + ahead
            for one, rows in zip(going_on, ready, strict=True)
            for ahead in range(len(rows))
        ]
        if not index:
            return  # every grammar that was left gave up
        chosen = choose(logits[index], [row for rows in ready for row in rows], observe)
        parts = _cut(chosen, map(len, ready))
        going_on = [one for one, part in zip(going_on, parts, strict=True) if one.keep(part)]


def describe_chosen(logits: Tensor, verifications: Sequence[Verification]) -> list[tuple[TokenLogprob, ...]]:
    """Log-probabilities of each sequence's new tokens in the model's own distribution; empty where not asked for."""
    asked = [one.decoding.sequence.request.params.logprobs for one in verifications]
    index: list[int] = []
    tokens: list[int] = []
    counts: list[int] = []
    for one, count in zip(verifications, asked, strict=True):
        if count is not None:
            index += range(one.first_row, one.first_row + len(one.tokens))
            tokens += one.tokens
            counts += [count] * len(one.tokens)
    if not index:
        return [()] * len(asked)
    described = describe(logits[index], tokens, counts)
    lengths = [0 if count is None else len(one.tokens) for one, count in zip(verifications, asked, strict=True)]
    return [tuple(part) for part in _cut(described, lengths)]


def _cut(items: list[T], lengths: Iterable[int]) -> list[list[T]]:
    """Consecutive parts of the given lengths."""
    parts, start = [], 0
    for length in lengths:
        parts.append(items[start : start + length])
        start += length
    return parts
