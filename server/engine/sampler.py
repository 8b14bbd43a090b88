"""Chooses the next token of each row: S(logits row, parameters, the sequence's own history, seed, position).

Rows are computed together but never look at each other; see `filters` for the stages and `noise` for the draw.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from server.engine.filters import HIDDEN, keep_min_p, keep_top_k, keep_top_p, penalise_counts, penalise_repetition
from server.engine.noise import LANES, REACH, gumbel_noise
from server.engine.params import SamplingParams
from server.engine.types import TokenLogprob

# The lowest temperature that divides logits without overflow. A colder one draws the same token: at this one already
# no noise bridges the distance between two different logits.
_COLDEST = 1e-30


@dataclass
class History:
    """Which tokens a sequence has used, kept only where a penalty asks for it."""

    seen: NDArray[np.bool_]  # [vocab] in prompt or output
    counts: NDArray[np.int32]  # [vocab] in the output

    @classmethod
    def of(cls, prompt: Sequence[int], vocab_size: int) -> "History":
        seen = np.zeros(vocab_size, dtype=np.bool_)
        seen[list(prompt)] = True
        return cls(seen, np.zeros(vocab_size, dtype=np.int32))

    def append(self, token: int) -> None:
        self.seen[token] = True
        self.counts[token] += 1


@dataclass(frozen=True)
class Row:
    """What besides its logits decides a row's token."""

    params: SamplingParams
    position: int  # where the chosen token will stand in its sequence
    withheld: tuple[int, ...] = ()  # ending tokens, while min_tokens is not reached
    history: History | None = field(default=None)


def wants_history(params: SamplingParams) -> bool:
    """Whether a penalty is in force."""
    return params.repetition_penalty != 1.0 or params.presence_penalty != 0.0 or params.frequency_penalty != 0.0


def sample(logits: Tensor, rows: Sequence[Row]) -> list[int]:
    """One token id per row of logits [rows, vocab] float32, which is changed in place."""
    _constrain(logits, rows)
    _penalise(logits, rows)
    drawn = [index for index, row in enumerate(rows) if row.params.temperature > 0]
    if drawn:
        every = len(drawn) == len(rows)
        choices = logits.argmax(-1) if not every else torch.empty(len(rows), dtype=torch.int64, device=logits.device)
        choices[drawn] = _draw(logits if every else logits[drawn], [rows[index] for index in drawn])
    else:
        choices = logits.argmax(-1)
    return [int(token) for token in choices.tolist()]


def describe(logits: Tensor, tokens: Sequence[int], counts: Sequence[int]) -> list[TokenLogprob]:
    """Log-probabilities of row i's token and of its counts[i] most likely ones; logits [rows, vocab] float32."""
    logprobs = logits.log_softmax(-1)
    chosen = torch.tensor(list(tokens), device=logits.device)[:, None]
    chosen_logprobs = logprobs.gather(-1, chosen)
    ranks = ((logprobs > chosen_logprobs).sum(-1) + 1).tolist()
    values = chosen_logprobs[:, 0].tolist()
    tops = [_most_likely(row, count) for row, count in zip(logprobs, counts, strict=True)]
    return [
        TokenLogprob(token, value, rank, top_tokens, top_logprobs)
        for token, value, rank, (top_tokens, top_logprobs) in zip(tokens, values, ranks, tops, strict=True)
    ]


def _most_likely(logprobs: Tensor, count: int) -> tuple[tuple[int, ...], tuple[float, ...]]:
    """The `count` most likely tokens of a row [vocab], ties by lower id."""
    count = min(count, logprobs.shape[0])
    if not count:
        return (), ()
    threshold = logprobs.topk(count).values[-1]
    candidates = (logprobs >= threshold).nonzero()[:, 0]
    ordered = logprobs[candidates].sort(descending=True, stable=True)
    tokens = candidates[ordered.indices[:count]].tolist()
    return tuple(tokens), tuple(ordered.values[:count].tolist())


def _constrain(logits: Tensor, rows: Sequence[Row]) -> None:
    for index, row in enumerate(rows):
        params = row.params
        if params.allowed_tokens is not None:
            allowed = list(params.allowed_tokens)
            kept = logits[index, allowed]
            logits[index] = HIDDEN
            logits[index, allowed] = kept
        if params.banned_tokens or row.withheld:
            logits[index, [*params.banned_tokens, *row.withheld]] = HIDDEN
        if params.logit_bias:
            tokens, biases = zip(*params.logit_bias, strict=True)
            logits[index].index_add_(0, torch.tensor(tokens, device=logits.device), logits.new_tensor(biases))


def _penalise(logits: Tensor, rows: Sequence[Row]) -> None:
    penalised = [index for index, row in enumerate(rows) if row.history is not None]
    if not penalised:
        return
    histories = [history for row in rows if (history := row.history) is not None]
    seen = torch.from_numpy(np.stack([history.seen for history in histories])).to(logits.device)
    counts = torch.from_numpy(np.stack([history.counts for history in histories])).to(logits.device)
    chosen = [rows[index] for index in penalised]

    def column(value: Callable[[SamplingParams], float]) -> Tensor:
        return _column(chosen, value, logits)

    part = penalise_repetition(logits[penalised], seen, column(lambda params: params.repetition_penalty))
    frequency, presence = (
        column(lambda params: params.frequency_penalty),
        column(lambda params: params.presence_penalty),
    )
    logits[penalised] = penalise_counts(part, counts, frequency, presence)


def _draw(logits: Tensor, rows: Sequence[Row]) -> Tensor:
    """Filter and draw; logits [rows, vocab], every row with a temperature above 0."""
    scaled = logits / _column(rows, lambda params: max(params.temperature, _COLDEST), logits)
    vocab_size = logits.shape[-1]
    stages: tuple[tuple[Callable[[SamplingParams], bool], Callable[[Tensor, Sequence[Row]], Tensor]], ...] = (
        (lambda params: 0 < params.top_k < vocab_size, _top_k),
        (lambda params: params.top_p < 1.0, _top_p),
        (lambda params: params.min_p > 0.0, _min_p),
    )
    for applies, stage in stages:
        chosen = [index for index, row in enumerate(rows) if applies(row.params)]
        if len(chosen) == len(rows):
            scaled = stage(scaled, rows)
        elif chosen:
            scaled[chosen] = stage(scaled[chosen], [rows[index] for index in chosen])
    return _argmax_with_noise(scaled, rows)


def _argmax_with_noise(scaled: Tensor, rows: Sequence[Row]) -> Tensor:
    """The Gumbel-max draw from the softmax of each row, computing noise only where it can matter."""
    quads = F.pad(scaled, (0, -scaled.shape[-1] % LANES), value=HIDDEN).view(len(rows), -1, LANES)
    reachable = quads >= quads.amax(dim=(1, 2), keepdim=True) - REACH
    index, counters = reachable.any(-1).nonzero().unbind(1)
    keys = np.array([row.params.seed for row in rows], dtype=np.uint64).view(np.int64)
    seeds = torch.from_numpy(keys).to(scaled.device)[index]
    positions = torch.tensor([row.position for row in rows], device=scaled.device)[index]
    perturbed = torch.full(quads.shape, HIDDEN, dtype=torch.float64, device=scaled.device)
    perturbed[index, counters] = quads[index, counters] + gumbel_noise(seeds, positions, counters)
    return perturbed.flatten(1).argmax(-1)


def _top_k(logits: Tensor, rows: Sequence[Row]) -> Tensor:
    return keep_top_k(logits, torch.tensor([row.params.top_k for row in rows], device=logits.device))


def _top_p(logits: Tensor, rows: Sequence[Row]) -> Tensor:
    return keep_top_p(logits, _column(rows, lambda params: params.top_p, logits))


def _min_p(logits: Tensor, rows: Sequence[Row]) -> Tensor:
    return keep_min_p(logits, _column(rows, lambda params: params.min_p, logits))


def _column(rows: Sequence[Row], value: Callable[[SamplingParams], float], like: Tensor) -> Tensor:
    """A parameter of each row as a column [rows, 1]."""
    return like.new_tensor([[value(row.params)] for row in rows])
