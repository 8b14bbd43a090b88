"""Chooses the next token of each row: S(logits row, parameters, the sequence's own history, seed, position).

Rows are computed together but never look at each other; see `sampling.stages` for what is done to their logits and
`noise` for the draw.
"""

from collections.abc import Callable, Iterator, Sequence

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from server.engine.filters import HIDDEN
from server.engine.noise import LANES, REACH, gumbel_noise
from server.engine.sampling.constraints import constrain, is_constrained
from server.engine.sampling.likeliest import likeliest
from server.engine.sampling.mirostat import adjusted, surprise
from server.engine.sampling.order import MIROSTAT
from server.engine.sampling.row import Observe as Observe
from server.engine.sampling.row import Row as Row
from server.engine.sampling.row import observe_nothing as observe_nothing
from server.engine.sampling.stages import STAGES
from server.engine.sampling.state import DecodingState as DecodingState
from server.engine.types import TokenLogprob

Draw = Callable[[Tensor, Sequence[Row]], list[int]]
"""From logits [rows, vocab] that all stages have been applied to, to tokens."""


def choose(
    logits: Tensor, rows: Sequence[Row], observe: Observe = observe_nothing, draw: Draw | None = None
) -> list[int]:
    """One token id per row of logits [rows, vocab] float32, which may be changed in place; each is recorded in its
    row's state.

    `observe` hears of "constraints", of every stage by its name, and last of "draw": the logits the draw was made from
    and, float64, the same with the noise of those tokens that could win. Without it nothing is kept to tell of, and
    `draw` may take the place of torch's own.
    """
    _constrain(logits, rows, observe)
    uncut: dict[int, Tensor] = {}  # rows as mirostat finds them
    for name, indices in _turns(rows, observe is not observe_nothing):
        if name == MIROSTAT:
            uncut.update((index, logits[index].clone()) for index in indices)
        logits = _apply(name, logits, rows, indices, observe)
    tokens = _draw(logits, rows, observe) if draw is None else draw(logits, rows)
    for index, own in uncut.items():
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
    tops = [likeliest(row, count) for row, count in zip(logprobs, counts, strict=True)]
    return [
        TokenLogprob(token, value, rank, tuple(top_tokens), tuple(top_logprobs), entropy)
        for token, value, rank, (top_tokens, top_logprobs), entropy in zip(
            tokens, values, ranks, tops, _entropies(logits, logprobs), strict=True
        )
    ]


def _entropies(logits: Tensor, logprobs: Tensor) -> list[float]:
    """Of every row, in nats. The softmax has each row to itself and so has the running sum: an exponential of the
    whole tensor would round by where a row stands in it, and `sum` may split a single row among threads."""
    terms = (logits.softmax(-1).double() * logprobs).masked_fill(logprobs.isneginf(), 0.0)
    totals: list[float] = terms.cumsum(-1)[:, -1].neg().tolist()
    return totals


def _constrain(logits: Tensor, rows: Sequence[Row], observe: Observe) -> None:
    constrained = [index for index, row in enumerate(rows) if is_constrained(row)]
    before = logits[constrained] if constrained and observe is not observe_nothing else None
    for index in constrained:
        constrain(logits[index], rows[index])
    if before is not None:
        observe("constraints", constrained, before, logits[constrained])


def _turns(rows: Sequence[Row], watched: bool) -> Iterator[tuple[str, list[int]]]:
    """The stages in every order the rows ask for, with the rows each is applied to.

    That a greedy row has one candidate is written out only for those who look, and for mirostat.
    """
    orders: dict[tuple[str, ...], list[int]] = {}
    for index, row in enumerate(rows):
        params = row.params
        if params.stages and (watched or params.stages != ("temperature",) or not params.is_greedy):
            orders.setdefault(params.samplers, []).append(index)
    for order, members in orders.items():
        for name in (*order, MIROSTAT):
            applied = [index for index in members if name in rows[index].params.stages]
            if name == "temperature" and not watched:
                applied = [i for i in applied if not rows[i].params.is_greedy or rows[i].params.mirostat]
            if applied:
                yield name, applied


def _apply(name: str, logits: Tensor, rows: Sequence[Row], indices: list[int], observe: Observe) -> Tensor:
    """The logits [rows, vocab] after the stage did its work on the rows `indices`."""
    every = len(indices) == len(rows)
    before = logits if every else logits[indices]
    after = STAGES[name](before, rows if every else [rows[index] for index in indices])
    if observe is not observe_nothing:
        observe(name, indices, before, after)
        logits = logits.clone()  # what was shown stays as it was
    if every:
        return after
    logits[indices] = after
    return logits


def _draw(logits: Tensor, rows: Sequence[Row], observe: Observe) -> list[int]:
    """The arg-max of greedy rows and the draw of the others."""
    drawn = [index for index, row in enumerate(rows) if not row.params.is_greedy]
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
