"""Two servers compared pair by pair: ratios of runs that sent the same requests one after the other. Pure."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from statistics import median

from loadtest.measure import Run
from loadtest.plan import LoadPoint
from loadtest.statistics import Spread, Summary

# Name to value; throughput is better when higher, the rest when lower.
METRICS: dict[str, Callable[[Summary], float | None]] = {
    "output_tokens_per_second": lambda summary: summary.throughput.output_tokens,
    "ttft_p50": lambda summary: _p50(summary.ttft_ms),
    "itl_p50": lambda summary: _p50(summary.itl_ms),
    "e2e_p50": lambda summary: _p50(summary.e2e_ms),
}


@dataclass(frozen=True)
class Comparison:
    """One metric at one load: A / B for each round, and their median. None where either was not measured."""

    point: LoadPoint
    metric: str
    ratios: list[float | None]
    median: float | None


def compare(runs: Sequence[Run]) -> list[Comparison]:
    """All metrics at all loads, in the order of the runs. Empty where there is no second server."""
    pairs: dict[LoadPoint, dict[int, dict[str, Summary]]] = {}
    for run in runs:
        pairs.setdefault(run.step.point, {}).setdefault(run.step.round, {})[run.step.label] = run.summary
    found = []
    for point, rounds in pairs.items():
        whole = [pair for _, pair in sorted(rounds.items()) if len(pair) == 2]
        for metric, read in METRICS.items() if whole else ():
            ratios = [ratio(read(pair["A"]), read(pair["B"])) for pair in whole]
            known = [value for value in ratios if value is not None]
            found.append(Comparison(point, metric, ratios, median(known) if known else None))
    return found


def ratio(first: float | None, second: float | None) -> float | None:
    """first / second; None where either is missing or the second is 0."""
    return None if first is None or not second else first / second


def _p50(spread: Spread | None) -> float | None:
    return None if spread is None else spread.p50
