"""Which runs a load test makes, in which order, decided before the first request. Pure."""

from dataclasses import dataclass
from typing import Literal

from loadtest.config import DEFAULT_CONCURRENCY, MAX_REQUESTS, LoadOptions, VersusOptions

Label = Literal["A", "B"]


@dataclass(frozen=True)
class LoadPoint:
    """A closed loop of `value` workers, or an open loop of `value` requests a second."""

    kind: Literal["concurrency", "rate"]
    value: float

    def __str__(self) -> str:
        return f"{self.kind} {self.value:g}"


@dataclass(frozen=True)
class Step:
    """One run: server A or B at one load. Runs of the same point and round send the same requests."""

    label: Label
    point: LoadPoint
    round: int
    first_index: int


def load_points(load: LoadOptions) -> list[LoadPoint]:
    """The loads in the order given, or the ladder up to the one value of a sweep."""
    if load.rate:
        rates = load.rate
        if load.sweep and len(rates) == 1:
            rates = tuple(rates[0] / divisor for divisor in (8, 4, 2, 1))
        return [LoadPoint("rate", rate) for rate in rates]
    workers = load.concurrency or (DEFAULT_CONCURRENCY,)
    if load.sweep and len(workers) == 1:
        top = workers[0]
        workers = (*(2**power for power in range(top.bit_length()) if 2**power < top), top)
    return [LoadPoint("concurrency", count) for count in workers]


def plan(load: LoadOptions, versus: VersusOptions) -> list[Step]:
    """All runs in order. With two servers every other round begins with B, so that drift favours neither."""
    num_rounds = versus.rounds if versus.versus else 1
    steps = []
    for number, point in enumerate(load_points(load)):
        for turn in range(num_rounds):
            first_index = (number * num_rounds + turn) * MAX_REQUESTS
            steps += [Step(label, point, turn, first_index) for label in _order(turn, versus.versus is not None)]
    return steps


def _order(turn: int, has_second: bool) -> tuple[Label, ...]:
    if not has_second:
        return ("A",)
    return ("A", "B") if turn % 2 == 0 else ("B", "A")
