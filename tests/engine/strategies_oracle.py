"""Every strategy for one row in float64, written from its paper, token by token. Knows no torch and no batch."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from sampler_oracle import HIDDEN, softmax
from test_noise import plain_philox

from server.engine.params import SamplingParams
from server.engine.sampling.ranges import MAX_MATCH

# Nearer than this to a limit, rounding to float32 may decide.
CLOSE = 1e-5
SHAPING = ("repetition_penalty", "frequency_penalty", "presence_penalty", "dry", "temperature")

Logits = list[float]


@dataclass
class Case:
    """One choice, and whether any decision on the way was too close for float32."""

    params: SamplingParams
    prompt: Sequence[int] = ()
    output: Sequence[int] = ()
    position: int = 0
    mu: float = 0.0
    is_close: bool = field(default=False)

    @property
    def tokens(self) -> list[int]:
        return [*self.prompt, *self.output]

    def reaches(self, value: float, limit: float) -> bool:
        self.is_close |= abs(value - limit) < CLOSE
        return value >= limit

    def ranks(self, value: float, limit: float) -> bool:
        """The same where equal values are equal in float32 too."""
        self.is_close |= 0 < abs(value - limit) < CLOSE
        return value >= limit


def candidates(row: Logits) -> list[int]:
    return [token for token, logit in enumerate(row) if logit > HIDDEN]


def keep(row: Logits, kept: Callable[[int], bool]) -> Logits:
    return [logit if logit > HIDDEN and kept(token) else HIDDEN for token, logit in enumerate(row)]


def entropy(row: Logits) -> float:
    return -math.fsum(p * math.log(p) for p in softmax(row) if p > 0)


def logprobs(row: Logits) -> Logits:
    """Of every token: where a cold row's probability is too small for a number, its logarithm is not."""
    best = max(row)
    total = math.fsum(math.exp(x - best) for x in row)
    return [x - best - math.log(total) for x in row]


def window(case: Case) -> tuple[list[int], list[int]]:
    """What of the history the penalties look at: all of it, and the part that is output."""
    last = case.params.repeat_last_n
    indices = range(len(case.tokens))
    inside = [i for i in indices if last < 0 or i >= len(case.tokens) - last]
    return [case.tokens[i] for i in inside], [case.tokens[i] for i in inside if i >= len(case.prompt)]


def repetition_penalty(row: Logits, case: Case) -> Logits:
    seen, by = window(case)[0], case.params.repetition_penalty
    return [(x / by if x > 0 else x * by) if token in seen else x for token, x in enumerate(row)]


def frequency_penalty(row: Logits, case: Case) -> Logits:
    said = window(case)[1]
    return [x - case.params.frequency_penalty * said.count(token) for token, x in enumerate(row)]


def presence_penalty(row: Logits, case: Case) -> Logits:
    said = window(case)[1]
    return [x - case.params.presence_penalty * (token in said) for token, x in enumerate(row)]


def unbroken(tokens: Sequence[int], breakers: Sequence[Sequence[int]]) -> int:
    """How many tokens follow the last breaker."""
    for count in range(len(tokens)):
        before = tokens[: len(tokens) - count]
        if any(list(before[-len(breaker) :]) == list(breaker) for breaker in breakers):
            return count
    return len(tokens)


def dry_match(tokens: Sequence[int], token: int, longest: int) -> int:
    """The length of the longest end of `tokens` that was followed by `token` before."""
    best = 0
    for length in range(1, longest + 1):
        for start in range(len(tokens) - length):
            if list(tokens[start : start + length]) == list(tokens[-length:]) and tokens[start + length] == token:
                best = length
    return best


def dry(row: Logits, case: Case) -> Logits:
    params = case.params
    searched = case.tokens if params.dry_range < 0 else case.tokens[max(0, len(case.tokens) - params.dry_range) :]
    longest = min(unbroken(case.tokens, params.dry_breakers), MAX_MATCH, len(searched))
    result = list(row)
    for token in range(len(row)):
        match = dry_match(searched, token, longest)
        if match >= params.dry_allowed_length and (token,) not in params.dry_breakers:
            result[token] -= params.dry_multiplier * params.dry_base ** (match - params.dry_allowed_length)
    return result


def temperature(row: Logits, case: Case) -> Logits:
    params = case.params
    value = params.temperature
    if params.dynatemp_range > 0:
        low, high = max(0.0, value - params.dynatemp_range), value + params.dynatemp_range
        count = len(candidates(row))
        share = entropy(row) / math.log(count) if count > 1 else 0.0
        value = low + (high - low) * max(0.0, share) ** params.dynatemp_exponent
        case.is_close |= 0 < value < 1e-3
    if value == 0:
        best = max(candidates(row), key=lambda token: (row[token], -token))
        return keep(row, lambda token: token == best)
    return [x / value for x in row]


def top_n_sigma(row: Logits, case: Case) -> Logits:
    values = [row[token] for token in candidates(row)]
    mean = math.fsum(values) / len(values)
    sigma = math.sqrt(math.fsum((x - mean) ** 2 for x in values) / len(values))
    if sigma == 0:
        return row
    return keep(row, lambda token: case.reaches(row[token], max(values) - case.params.top_n_sigma * sigma))


def top_k(row: Logits, case: Case) -> Logits:
    if not 0 < case.params.top_k < len(row):
        return row
    limit = sorted(row, reverse=True)[case.params.top_k - 1]
    return keep(row, lambda token: case.ranks(row[token], limit))


def typical_p(row: Logits, case: Case) -> Logits:
    p, known, mean = softmax(row), logprobs(row), entropy(row)
    distance = {token: abs(-known[token] - mean) for token in candidates(row)}
    total = 0.0
    for limit in sorted(distance.values()):
        total = math.fsum(p[token] for token in distance if case.ranks(limit, distance[token]))
        if case.reaches(total, case.params.typical_p):
            break
    return keep(row, lambda token: distance[token] <= limit)


def at_least(row: Logits, case: Case, limit: float) -> Logits:
    """Keep what has that probability, or the most likely."""
    known = logprobs(row)
    return keep(row, lambda token: case.reaches(known[token], math.log(limit)) or row[token] == max(row))


def epsilon_cutoff(row: Logits, case: Case) -> Logits:
    return at_least(row, case, case.params.epsilon_cutoff)


def eta_cutoff(row: Logits, case: Case) -> Logits:
    epsilon = case.params.eta_cutoff
    return at_least(row, case, min(epsilon, math.sqrt(epsilon) * math.exp(-entropy(row))))


def top_a(row: Logits, case: Case) -> Logits:
    return at_least(row, case, case.params.top_a * max(softmax(row)) ** 2)


def top_p(row: Logits, case: Case) -> Logits:
    p = softmax(row)
    for limit in sorted({row[token] for token in candidates(row)}, reverse=True):
        if case.reaches(math.fsum(p[t] for t in candidates(row) if case.ranks(row[t], limit)), case.params.top_p):
            break
    return keep(row, lambda token: row[token] >= limit)


def min_p(row: Logits, case: Case) -> Logits:
    limit = max(row) + math.log(case.params.min_p)
    return keep(row, lambda token: case.reaches(row[token], limit))


def coin(params: SamplingParams, position: int) -> float:
    return (plain_philox([0, position, 1, 0], [params.seed & 0xFFFFFFFF, params.seed >> 32])[0] + 0.5) / 2**32


def xtc(row: Logits, case: Case) -> Logits:
    if coin(case.params, case.position) >= case.params.xtc_probability:
        return row
    known, limit = logprobs(row), case.params.xtc_threshold
    tops = [token for token in candidates(row) if limit == 0 or case.reaches(known[token], math.log(limit))]
    least = min((row[token] for token in tops), default=HIDDEN)
    return keep(row, lambda token: token not in tops or case.ranks(least, row[token]))


def mirostat(row: Logits, case: Case) -> Logits:
    return mirostat_1(row, case) if case.params.mirostat == 1 else mirostat_2(row, case)


def mirostat_1(row: Logits, case: Case) -> Logits:
    """Basu et al. 2021, algorithm 1: Zipf's exponent from the 100 most likely, then top-k."""
    p = sorted((p for p in softmax(row) if p > 0), reverse=True)
    if len(p) < 2:
        return row
    t = [math.log((i + 2) / (i + 1)) for i in range(min(100, len(p)) - 1)]
    b = [math.log(p[i] / p[i + 1]) for i in range(len(t))]
    s = sum(x * y for x, y in zip(t, b, strict=True)) / sum(x * x for x in t)
    e = s - 1
    case.is_close |= abs(e) < 1e-4 or s < 1e-2
    if case.is_close:
        return row
    log_k = math.log(e * 2**case.mu / (1 - len(row) ** -e)) / s
    k = len(row) if log_k > math.log(len(row)) else max(1, math.floor(math.exp(log_k)))
    case.is_close |= abs(math.exp(min(log_k, 10)) - round(math.exp(min(log_k, 10)))) < CLOSE
    limit = sorted(row, reverse=True)[k - 1]
    return keep(row, lambda token: case.ranks(row[token], limit))


def mirostat_2(row: Logits, case: Case) -> Logits:
    """Basu et al. 2021, algorithm 2: no token more surprising than mu."""
    known = logprobs(row)
    return keep(row, lambda token: case.reaches(case.mu, -known[token] / math.log(2)) or row[token] == max(row))


NEUTRAL = SamplingParams()
STAGES: dict[str, Callable[[Logits, Case], Logits]] = {
    function.__name__: function
    for function in (
        repetition_penalty,
        frequency_penalty,
        presence_penalty,
        dry,
        temperature,
        top_n_sigma,
        top_k,
        typical_p,
        epsilon_cutoff,
        eta_cutoff,
        top_a,
        top_p,
        min_p,
        xtc,
    )
}
_SWITCHES = {"dry": "dry_multiplier", "xtc": "xtc_probability"}


def is_on(name: str, params: SamplingParams) -> bool:
    switch = _SWITCHES.get(name, name)
    if name == "temperature" and params.dynatemp_range > 0:
        return True
    return bool(getattr(params, switch) != getattr(NEUTRAL, switch))


def decided(row: Logits, case: Case) -> Logits:
    """The logits the draw is made from, after every stage in the request's order."""
    for name in case.params.samplers:
        if is_on(name, case.params) and (not case.params.mirostat or name in SHAPING):
            row = STAGES[name](row, case)
    return mirostat(row, case) if case.params.mirostat else row
