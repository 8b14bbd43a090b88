"""From records to numbers: percentiles, rates, totals. Pure arithmetic; knows no server and no output format."""

import math
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from loadtest.goodput import Limits
from loadtest.record import Record


@dataclass(frozen=True)
class Spread:
    """How one latency was distributed, in milliseconds."""

    count: int
    mean: float
    p50: float
    p90: float
    p95: float
    p99: float
    max: float


@dataclass(frozen=True)
class Totals:
    """Where every request went: sent = ok + errors + disconnected."""

    sent: int
    ok: int
    errors: int
    disconnected: int
    errors_by_kind: dict[str, int]
    error_examples: dict[str, str]
    empty: int
    """Of the ok: answers without a single visible token, which have no time to first token."""


@dataclass(frozen=True)
class Tokens:
    """Sums over the ok requests. Prompt tokens are the server's own count, and 0 where it gives none."""

    prompt: int
    cached_prompt: int
    output: int
    per_chunk: float | None
    requests_without_usage: int


@dataclass(frozen=True)
class Throughput:
    """Per second of the whole run, from its start to its last answer; only ok requests count."""

    requests: float
    output_tokens: float
    prompt_tokens: float
    total_tokens: float


@dataclass(frozen=True)
class Goodput:
    """Ok requests within all limits: their share of all that were not disconnected on purpose, and their rate."""

    limits: Limits
    good: int
    share: float
    requests_per_second: float


@dataclass(frozen=True)
class Summary:
    """One run. Latencies are those of ok requests; None where there was nothing to measure."""

    duration_seconds: float
    totals: Totals
    tokens: Tokens
    throughput: Throughput
    goodput: Goodput | None
    ttft_ms: Spread | None
    itl_ms: Spread | None
    tpot_ms: Spread | None
    e2e_ms: Spread | None
    mean_in_flight: float
    peak_in_flight: int
    max_send_lag_ms: float
    """The longest that a request was sent after its intended time."""


def summarize(records: Sequence[Record], duration_seconds: float, limits: Limits | None) -> Summary:
    """The numbers of one run that took `duration_seconds`."""
    ok = [record for record in records if record.outcome == "ok"]
    tokens = _tokens(ok)
    in_flight_seconds = sum(record.end - record.sent for record in records)
    return Summary(
        duration_seconds=duration_seconds,
        totals=_totals(records),
        tokens=tokens,
        throughput=_throughput(len(ok), tokens, duration_seconds),
        goodput=None if limits is None else _goodput(records, limits, duration_seconds),
        ttft_ms=spread_ms(record.ttft for record in ok),
        itl_ms=spread_ms(gap for record in ok for gap in record.itls),
        tpot_ms=spread_ms(record.tpot for record in ok),
        e2e_ms=spread_ms(record.e2e for record in ok),
        mean_in_flight=_rate(in_flight_seconds, duration_seconds),
        peak_in_flight=_peak_in_flight(records),
        max_send_lag_ms=1000 * max((record.sent - record.intended for record in records), default=0.0),
    )


def percentile(ordered: Sequence[float], percent: float) -> float:
    """Linear interpolation between the two nearest of the rising values (Hyndman and Fan, 1996, type 7)."""
    position = (len(ordered) - 1) * percent / 100
    below = math.floor(position)
    above = min(below + 1, len(ordered) - 1)
    return ordered[below] + (ordered[above] - ordered[below]) * (position - below)


def spread_ms(seconds: Iterable[float | None]) -> Spread | None:
    """The spread of the values that exist, in milliseconds; None where none does."""
    ordered = sorted(1000 * value for value in seconds if value is not None)
    if not ordered:
        return None
    p50, p90, p95, p99 = (percentile(ordered, percent) for percent in (50, 90, 95, 99))
    return Spread(len(ordered), math.fsum(ordered) / len(ordered), p50, p90, p95, p99, ordered[-1])


def _rate(amount: float, seconds: float) -> float:
    return amount / seconds if seconds > 0 else 0.0


def _totals(records: Sequence[Record]) -> Totals:
    outcomes = Counter(record.outcome for record in records)
    failed = [(record.error_kind or "", record.error_detail or "") for record in records if record.outcome == "error"]
    return Totals(
        sent=len(records),
        ok=outcomes["ok"],
        errors=outcomes["error"],
        disconnected=outcomes["disconnected"],
        errors_by_kind=dict(Counter(kind for kind, _ in failed).most_common()),
        error_examples=dict(reversed(failed)),
        empty=sum(record.outcome == "ok" and record.num_chunks == 0 for record in records),
    )


def _tokens(ok: Sequence[Record]) -> Tokens:
    num_output = sum(record.output_tokens for record in ok)
    num_chunks = sum(record.num_chunks for record in ok)
    return Tokens(
        prompt=sum(record.prompt_tokens or 0 for record in ok),
        cached_prompt=sum(record.cached_tokens for record in ok),
        output=num_output,
        per_chunk=num_output / num_chunks if num_chunks else None,
        requests_without_usage=sum(not record.has_usage for record in ok),
    )


def _throughput(num_ok: int, tokens: Tokens, seconds: float) -> Throughput:
    return Throughput(
        requests=_rate(num_ok, seconds),
        output_tokens=_rate(tokens.output, seconds),
        prompt_tokens=_rate(tokens.prompt, seconds),
        total_tokens=_rate(tokens.prompt + tokens.output, seconds),
    )


def _goodput(records: Sequence[Record], limits: Limits, seconds: float) -> Goodput:
    num_good = sum(limits.met_by(record) for record in records)
    num_judged = sum(record.outcome != "disconnected" for record in records)
    return Goodput(limits, num_good, _rate(num_good, num_judged), _rate(num_good, seconds))


def _peak_in_flight(records: Sequence[Record]) -> int:
    # An end before a start at the same instant: the worker's next request does not overlap its last.
    changes = sorted([(record.sent, 1) for record in records] + [(record.end, -1) for record in records])
    peak = current = 0
    for _, change in changes:
        current += change
        peak = max(peak, current)
    return peak
