"""From a step's logits to tokens: the target is sampled at every drafted position, drafts are kept while they agree.

Each position is sampled with its own noise (design, section 4), so the tokens are those of decoding without drafts,
which is this with none. Knows no scheduler and no cache.
"""

from collections.abc import Iterable, Sequence
from typing import Protocol, TypeVar

from torch import Tensor

from server.engine.decoding import Verification
from server.engine.sampler import Observe, Row, choose, describe, observe_nothing
from server.engine.types import TokenLogprob

T = TypeVar("T")


class Choose(Protocol):
    """What chooses tokens: torch, or a sampler of the device where the logits are."""

    def __call__(
        self, logits: Tensor, places: Sequence[int], rows: Sequence[Row], observe: Observe = observe_nothing
    ) -> list[int]:
        """One token for each row logits[places]; the logits [any, vocab] float32 are left as they are. See
        `sampler.choose`."""
        ...


def choose_by_torch(
    logits: Tensor, places: Sequence[int], rows: Sequence[Row], observe: Observe = observe_nothing
) -> list[int]:
    """A `Choose` for every device."""
    return choose(logits[places], rows, observe)


def verify(
    logits: Tensor,
    verifications: Iterable[Verification],
    choose: Choose = choose_by_torch,
    observe: Observe = observe_nothing,
) -> None:
    """Give every sequence its tokens of this step; logits [rows, vocab] float32, left as they are.

    Rows are sampled in rounds: a sequence whose choices depend on its history gets one token a round.
    """
    going_on = list(verifications)
    while going_on:
        places: list[int] = []
        rows: list[Row] = []
        lengths: list[int] = []
        for one in going_on:
            ready = one.ready_rows()
            first = one.first_row + len(one.tokens)
            places += range(first, first + len(ready))
            rows += ready
            lengths.append(len(ready))
        if not places:
            return  # every grammar that was left gave up
        parts = _cut(choose(logits, places, rows, observe), lengths)
        going_on = [one for one, part in zip(going_on, parts, strict=True) if one.keep(part)]


def describe_chosen(logits: Tensor, verifications: Sequence[Verification]) -> list[tuple[TokenLogprob, ...]]:
    """Log-probabilities of each sequence's new tokens in the model's own distribution; empty where not asked for."""
    asked = [one.decoding.sequence.request.params.logprobs for one in verifications]
    if asked.count(None) == len(asked):
        return [()] * len(asked)
    index: list[int] = []
    tokens: list[int] = []
    counts: list[int] = []
    for one, count in zip(verifications, asked, strict=True):
        if count is not None:
            index += range(one.first_row, one.first_row + len(one.tokens))
            tokens += one.tokens
            counts += [count] * len(one.tokens)
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
