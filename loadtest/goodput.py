"""Limits a request must keep to be counted as good, written as `ttft:200 itl:20 e2e:5000` in milliseconds."""

from collections.abc import Iterable
from dataclasses import dataclass, fields, replace

from loadtest.record import Record
from loadtest.refusal import refuse


@dataclass(frozen=True)
class Limits:
    """Milliseconds; None is no limit. `itl` bounds the largest gap of a request, `tpot` its mean per token."""

    ttft: float | None = None
    itl: float | None = None
    tpot: float | None = None
    e2e: float | None = None

    def met_by(self, record: Record) -> bool:
        """Whether an answered request kept every limit. A time that does not exist breaks no limit."""
        if record.outcome != "ok":
            return False
        measured = (record.ttft, max(record.itls, default=None), record.tpot, record.e2e)
        limits = (self.ttft, self.itl, self.tpot, self.e2e)
        return all(
            limit is None or seconds is None or seconds * 1000 <= limit
            for limit, seconds in zip(limits, measured, strict=True)
        )


def parse_limits(field: str, parts: Iterable[str]) -> Limits | None:
    """The limits that `parts` name, None for none; refused under the name `field` otherwise."""
    limits = Limits()
    names = [item.name for item in fields(Limits)]
    for part in parts:
        name, _, text = part.partition(":")
        if name not in names or not _is_positive(text):
            refuse(field, part, f"must be NAME:MILLISECONDS above 0, NAME one of {', '.join(names)}")
        limits = replace(limits, **{name: float(text)})
    return None if limits == Limits() else limits


def _is_positive(text: str) -> bool:
    try:
        return 0 < float(text) < float("inf")
    except ValueError:
        return False
