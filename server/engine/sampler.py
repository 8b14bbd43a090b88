"""Chooses the next token of each row: S(logits row, parameters, the sequence's own history, seed, position).

Rows are computed together but never look at each other; see `sampling.stages` for what is done to their logits and
`noise` for the draw.
"""

from collections.abc import Iterator, Sequence
from dataclasses import replace

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from server.engine.filters import HIDDEN
from server.engine.noise import LANES, REACH, gumbel_noise
from server.engine.params import SamplingParams
from server.engine.sampling.constraints import constrain, is_constrained
from server.engine.sampling.mirostat import adjusted, surprise
from server.engine.sampling.order import SHAPING
from server.engine.sampling.row import Observe as Observe
from server.engine.sampling.row import Row as Row
from server.engine.sampling.row import observe_nothing as observe_nothing
from server.engine.sampling.stages import MIROSTAT, STAGES, Stage
from server.engine.sampling.state import DecodingState as DecodingState
from server.engine.types import TokenLogprob


def choose(logits: Tensor, rows: Sequence[Row], observe: Observe = observe_nothing) -> list[int]:
    """One token id per row of logits [rows, vocab] float32, which may be changed in place; each is recorded in its
    row's state.

    `observe` hears of "constraints", of every stage by its name, and last of "draw": the logits the draw was made from
    and, float64, the same with the noise of those tokens that could win. Without it nothing is kept to tell of.
    """
    _constrain(logits, rows, observe)
    for stage, indices in _turns(rows, logits.shape[-1], observe is not observe_nothing):
        logits = _apply(stage, logits, rows, indices, observe)
    surprising = [index for index, row in enumerate(rows) if row.params.mirostat]
    uncut = logits[surprising] if surprising else logits
    logits = _apply(MIROSTAT, logits, rows, surprising, observe)
    tokens = _draw(logits, rows, observe)
    for index, own in zip(surprising, uncut, strict=False):
        _adjust_mu(rows[index], surprise(own, tokens[index]))
    for row, token in zip(rows, tokens, strict=True):
        if row.state is not None:
            row.state.append(token)
    return tokens


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


def is_greedy(params: SamplingParams) -> bool:
    """Whether nothing but the most likely token is left where the temperature stands in the order."""
    return params.temperature == 0 and params.dynatemp_range == 0 and "temperature" in params.samplers


def _constrain(logits: Tensor, rows: Sequence[Row], observe: Observe) -> None:
    constrained = [index for index, row in enumerate(rows) if is_constrained(row)]
    before = logits[constrained] if constrained and observe is not observe_nothing else None
    for index in constrained:
        constrain(logits[index], rows[index])
    if before is not None:
        observe("constraints", constrained, before, logits[constrained])


def _turns(rows: Sequence[Row], vocab_size: int, watched: bool) -> Iterator[tuple[Stage, list[int]]]:
    """The stages in every order the rows ask for, with the rows each applies to.

    A greedy row is decided at the temperature: its one candidate is written out only for those who look.
    """
    orders: dict[tuple[str, ...], list[int]] = {}
    for index, row in enumerate(rows):
        orders.setdefault(row.params.samplers, []).append(index)
    for order, undecided in orders.items():
        for stage in (STAGES[name] for name in order):
            applied = [i for i in undecided if _runs(stage, rows[i].params, vocab_size)]
            if stage.name == "temperature":
                undecided = [i for i in undecided if not is_greedy(rows[i].params)]
                if not watched:
                    applied = [i for i in applied if not is_greedy(rows[i].params) or rows[i].params.mirostat]
            yield stage, applied


def _runs(stage: Stage, params: SamplingParams, vocab_size: int) -> bool:
    return stage.applies(params, vocab_size) and (not params.mirostat or stage.name in SHAPING)


def _apply(stage: Stage, logits: Tensor, rows: Sequence[Row], indices: list[int], observe: Observe) -> Tensor:
    """The logits [rows, vocab] after the stage did its work on the rows `indices`."""
    if not indices:
        return logits
    every = len(indices) == len(rows)
    before = logits if every else logits[indices]
    after = stage.apply(before, rows if every else [rows[index] for index in indices])
    if observe is not observe_nothing:
        observe(stage.name, indices, before, after)
    if every:
        return after
    logits[indices] = after
    return logits


def _draw(logits: Tensor, rows: Sequence[Row], observe: Observe) -> list[int]:
    """The arg-max of greedy rows and the draw of the others."""
    drawn = [index for index, row in enumerate(rows) if not is_greedy(row.params)]
    if len(drawn) == len(rows):
        perturbed = _with_noise(logits, rows)
        choices = perturbed.argmax(-1)
    else:
        choices = logits.argmax(-1)
        perturbed = logits if observe is observe_nothing else logits.double()
        if drawn:
            noisy = _with_noise(logits[drawn], [rows[index] for index in drawn])
            choices[drawn] = noisy.argmax(-1)
            if observe is not observe_nothing:
                perturbed[drawn] = noisy[:, : logits.shape[-1]]
    if observe is not observe_nothing:
        observe("draw", range(len(rows)), logits, perturbed[:, : logits.shape[-1]])
    tokens: list[int] = choices.tolist()
    return tokens


def _with_noise(scaled: Tensor, rows: Sequence[Row]) -> Tensor:
    """Logits plus Gumbel noise [rows, vocab, padded to whole quads] float64, minus infinity where the noise could not
    make the token win: the arg-max draws from the softmax of each row."""
    quads = F.pad(scaled, (0, -scaled.shape[-1] % LANES), value=HIDDEN).view(len(rows), -1, LANES)
    reachable = quads >= quads.amax(dim=(1, 2), keepdim=True) - REACH
    index, counters = reachable.any(-1).nonzero().unbind(1)
    keys = np.array([row.params.seed for row in rows], dtype=np.uint64).view(np.int64)
    seeds = torch.from_numpy(keys).to(scaled.device)[index]
    positions = torch.tensor([row.position for row in rows], device=scaled.device)[index]
    perturbed = torch.full(quads.shape, HIDDEN, dtype=torch.float64, device=scaled.device)
    perturbed[index, counters] = quads[index, counters] + gumbel_noise(seeds, positions, counters)
    return perturbed.flatten(1)


def _adjust_mu(row: Row, surprise: float) -> None:
    assert row.state is not None
    row.state.mu = adjusted(row.state.mu, surprise, row.params.mirostat_tau, row.params.mirostat_eta)


class History:
    """The older name of a state."""

    @staticmethod
    def of(prompt: Sequence[int], vocab_size: int) -> DecodingState:
        return DecodingState(SamplingParams(repetition_penalty=2.0), prompt, vocab_size)


def wants_history(params: SamplingParams) -> bool:
    return DecodingState.of(params, (), 1) is not None


def sample(logits: Tensor, rows: Sequence[Row]) -> list[int]:
    """The older form of `choose`, which records nothing."""
    forked = [replace(row, state=row.state.fork() if row.state else None) for row in rows]
    return choose(logits, forked)
