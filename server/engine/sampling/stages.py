"""What each stage does to the rows it is applied to. Which those are, `order` and the rows' parameters say."""

from collections.abc import Callable, Mapping, Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from server.engine import filters
from server.engine.noise import COIN_STREAM, uniform_noise
from server.engine.params import SamplingParams
from server.engine.sampling.mirostat import keep_mirostat
from server.engine.sampling.order import COLDEST, MIROSTAT
from server.engine.sampling.repeats import Dry, dry_penalties
from server.engine.sampling.row import Row
from server.engine.sampling.state import DecodingState

Apply = Callable[[Tensor, Sequence[Row]], Tensor]
"""From the logits [rows, vocab] of some rows to new ones, working on each row alone."""
Value = Callable[[SamplingParams], float]


def _column(rows: Sequence[Row], value: Value, like: Tensor, dtype: torch.dtype = torch.float64) -> Tensor:
    """A parameter of each row as a column [rows, 1]."""
    return like.new_tensor([[value(row.params)] for row in rows], dtype=dtype)


def _with(function: Callable[[Tensor, Tensor], Tensor], value: Value, dtype: torch.dtype = torch.float64) -> Apply:
    """A filter of one parameter as a stage."""
    return lambda logits, rows: function(logits, _column(rows, value, logits, dtype))


def _penalty(
    function: Callable[[Tensor, Tensor, Tensor], Tensor],
    counts: Callable[[DecodingState], NDArray[np.generic]],
    value: Value,
) -> Apply:
    def apply(logits: Tensor, rows: Sequence[Row]) -> Tensor:
        """Works on the tokens that occur. One that occurs twice is written twice, and alike."""
        states = [_state(row) for row in rows]
        tokens = np.concatenate([state.counted for state in states])
        counted = np.concatenate([counts(state)[state.counted] for state in states])
        index = torch.from_numpy(np.repeat(np.arange(len(rows)), [len(state.counted) for state in states]))
        penalty = _column(rows, value, logits, torch.float32)[:, 0]
        places = index.to(logits.device), torch.from_numpy(tokens).long().to(logits.device)
        logits = logits.clone()
        logits[places] = function(logits[places], torch.from_numpy(counted).to(logits.device), penalty[places[0]])
        return logits

    return apply


def _state(row: Row) -> DecodingState:
    assert row.state is not None, "these parameters look back, so the row needs its DecodingState"
    return row.state


def _was_seen(state: DecodingState) -> NDArray[np.bool_]:
    return state.seen > 0


def _said(state: DecodingState) -> NDArray[np.int32]:
    return state.said


def _dry(logits: Tensor, rows: Sequence[Row]) -> Tensor:
    logits = logits.clone()
    for index, row in enumerate(rows):
        params, state = row.params, _state(row)
        num_searched = len(state.tokens) if params.dry_range < 0 else min(params.dry_range, len(state.tokens))
        dry = Dry(params.dry_multiplier, params.dry_base, params.dry_allowed_length, state.unbroken)
        searched = state.tokens[len(state.tokens) - num_searched :]
        tokens, penalties = dry_penalties(searched, state.matches, dry)
        changed = np.array([not state.is_breaker(token) for token in tokens.tolist()], dtype=np.bool_)
        places = torch.from_numpy(tokens[changed]).to(logits.device)
        logits[index, places] -= torch.from_numpy(penalties[changed]).to(logits)
    return logits


def _temperature(logits: Tensor, rows: Sequence[Row]) -> Tensor:
    """Divide by the temperature; where that is 0, only the arg-max stays."""
    temperatures = _column(rows, lambda params: params.temperature, logits)
    dynamic = [index for index, row in enumerate(rows) if row.params.dynatemp_range > 0]
    if dynamic:
        span = _column([rows[i] for i in dynamic], lambda params: params.dynatemp_range, logits)
        exponent = _column([rows[i] for i in dynamic], lambda params: params.dynatemp_exponent, logits)
        middle = temperatures[dynamic]
        temperatures[dynamic] = filters.dynamic_temperature(
            logits[dynamic], (middle - span).clamp_min(0.0), middle + span, exponent
        )
    scaled = logits / temperatures.clamp_min(COLDEST).float()
    frozen = (temperatures[:, 0] == 0).nonzero()[:, 0]
    if len(frozen):
        scaled[frozen] = filters.keep_most_likely(logits[frozen])
    return scaled


def _top_k(logits: Tensor, rows: Sequence[Row]) -> Tensor:
    return filters.keep_top_k(logits, torch.tensor([row.params.top_k for row in rows], device=logits.device))


def _xtc(logits: Tensor, rows: Sequence[Row]) -> Tensor:
    """Exclude top choices in those rows whose coin says so."""
    coins = uniform_noise([row.params.seed for row in rows], [row.position for row in rows], COIN_STREAM)
    heads = [index for index, row in enumerate(rows) if coins[index] < row.params.xtc_probability]
    if not heads:
        return logits
    threshold = _column([rows[index] for index in heads], lambda params: params.xtc_threshold, logits)
    logits = logits.clone()
    logits[heads] = filters.exclude_top_choices(logits[heads], threshold)
    return logits


def _mirostat(logits: Tensor, rows: Sequence[Row]) -> Tensor:
    kept = [keep_mirostat(own, row.params.mirostat, _state(row).mu) for own, row in zip(logits, rows, strict=True)]
    return torch.stack(kept)


STAGES: Mapping[str, Apply] = {
    "repetition_penalty": _penalty(filters.penalise_repetition, _was_seen, lambda own: own.repetition_penalty),
    "frequency_penalty": _penalty(filters.penalise_frequency, _said, lambda own: own.frequency_penalty),
    "presence_penalty": _penalty(filters.penalise_presence, _said, lambda own: own.presence_penalty),
    "dry": _dry,
    "temperature": _temperature,
    "top_n_sigma": _with(filters.keep_top_n_sigma, lambda own: own.top_n_sigma),
    "top_k": _top_k,
    "typical_p": _with(filters.keep_typical, lambda own: own.typical_p),
    "epsilon_cutoff": _with(filters.keep_epsilon, lambda own: own.epsilon_cutoff),
    "eta_cutoff": _with(filters.keep_eta, lambda own: own.eta_cutoff),
    "top_a": _with(filters.keep_top_a, lambda own: own.top_a),
    "top_p": _with(filters.keep_top_p, lambda own: own.top_p, torch.float32),
    "min_p": _with(filters.keep_min_p, lambda own: own.min_p, torch.float32),
    "xtc": _xtc,
    MIROSTAT: _mirostat,
}
