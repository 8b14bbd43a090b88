"""The full result as JSON: configuration, every run's summary, comparisons, and records where asked for."""

from collections.abc import Sequence
from dataclasses import asdict, replace

import msgspec

from loadtest.config import Config
from loadtest.measure import Run
from loadtest.record import Record
from loadtest.versus import compare

FORMAT_VERSION = 1


def document(config: Config, runs: Sequence[Run], started_at: str) -> bytes:
    """Indented JSON. Times of records are seconds from their run's start; what was not measured is null."""
    content = {
        "format_version": FORMAT_VERSION,
        "started_at": started_at,
        "config": _without_keys(config),
        "runs": [_run(run, config.report.per_request) for run in runs],
        "versus": [asdict(comparison) for comparison in compare(runs)],
    }
    # The encoder is told of paths; everything else it knows. It writes NaN as null.
    return msgspec.json.format(msgspec.json.encode(content, enc_hook=str), indent=2)


def _without_keys(config: Config) -> dict[str, object]:
    server, versus = replace(config.server, api_key=None), replace(config.versus, versus_api_key=None)
    return asdict(replace(config, server=server, versus=versus))


def _run(run: Run, with_records: bool) -> dict[str, object]:
    content: dict[str, object] = {
        "server": run.step.label,
        "url": run.url,
        "model": run.model,
        "load": asdict(run.step.point),
        "round": run.step.round,
        "warmup_errors": run.warmup_errors,
        "client_cpu_share": run.client_cpu_share,
        "summary": asdict(run.summary),
    }
    if with_records:
        content["requests"] = [_from_start(record, run.start) for record in run.records]
    return content


def _from_start(record: Record, start: float) -> Record:
    return replace(record, intended=record.intended - start, sent=record.sent - start, end=record.end - start)
