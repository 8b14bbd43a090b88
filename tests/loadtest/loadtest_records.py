"""Made-up records and runs, valid unless a test says otherwise."""

from dataclasses import replace
from typing import Any

from loadtest.measure import Run
from loadtest.plan import Label, LoadPoint, Step
from loadtest.record import Record
from loadtest.statistics import summarize

PLAIN = Record(
    index=0,
    outcome="ok",
    error_kind=None,
    error_detail=None,
    intended=0.0,
    sent=0.0,
    end=1.0,
    ttft=0.1,
    tpot=None,
    e2e=1.0,
    itls=(),
    num_chunks=1,
    prompt_tokens=None,
    cached_tokens=0,
    output_tokens=1,
    has_usage=True,
    finish_reason="length",
)


def a_record(index: int, **changes: Any) -> Record:
    """A record of an answered request with these fields changed."""
    return replace(PLAIN, index=index, **changes)


def a_run(label: Label, turn: int, output_tokens: int) -> Run:
    """A run of one second and one request with this many output tokens."""
    records = [a_record(0, output_tokens=output_tokens)]
    step = Step(label, LoadPoint("concurrency", 1), turn, 0)
    return Run(step, "http://x", "m", 0.0, records, {}, 0.1, summarize(records, 1.0, None))
