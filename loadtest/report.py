"""Results for a person: tables and notes in the terminal. Computes nothing but what is shown."""

from collections.abc import Sequence

from rich import box
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from loadtest.measure import Run
from loadtest.statistics import Goodput, Spread, Summary
from loadtest.versus import Comparison

BUSY_CLIENT = 0.8
LATE_MS = 10.0
# Below this the start of the run, not its requests, decides how busy the load generator looks.
SHORT_SECONDS = 1.0


def show_run(console: Console, run: Run, continuous_usage: bool) -> None:
    """One run: latencies, rates, totals, and what a reader should beware of."""
    summary = run.summary
    console.rule(escape(f"{run.step.label}  {run.url}  {run.model}  {run.step.point}"))
    console.print(_latency_table(summary))
    console.print(_rate_lines(summary), highlight=False)
    for note in _notes(run, continuous_usage):
        console.print(f"note: {escape(note)}", highlight=False, soft_wrap=True)
    for kind, number in summary.totals.errors_by_kind.items():
        example = summary.totals.error_examples[kind]
        console.print(escape(f"error: {kind} x {number}, such as: {example}"), style="red", soft_wrap=True)


def show_sweep(console: Console, runs: Sequence[Run]) -> None:
    """One line per run, for reading latency against load."""
    # Without lines between columns it fits the 80 columns that a pipe or a file is taken to have.
    table = Table(title="latency against load (milliseconds)", box=box.SIMPLE, collapse_padding=True, pad_edge=False)
    latencies = ("TTFT\np50", "TTFT\np99", "ITL\np50", "ITL\np99", "E2E\np50")
    for column in ("run", "load", "ok", "errors", *latencies, "req/s", "tok/s"):
        table.add_column(column, justify="right")
    for run in runs:
        summary = run.summary
        table.add_row(
            run.step.label,
            f"{run.step.point.value:g}",
            str(summary.totals.ok),
            str(summary.totals.errors),
            *[_ms(value) for value in (*_p50_p99(summary.ttft_ms), *_p50_p99(summary.itl_ms))],
            _ms(_p50_p99(summary.e2e_ms)[0]),
            f"{summary.throughput.requests:.2f}",
            f"{summary.throughput.output_tokens:.1f}",
        )
    console.print(table)


def show_versus(console: Console, comparisons: Sequence[Comparison]) -> None:
    """Ratios of the first server to the second, round by round."""
    table = Table(title="A / B, by round (throughput: above 1, A is better; latencies: below 1)")
    table.add_column("load")
    table.add_column("metric")
    table.add_column("rounds")
    table.add_column("median", justify="right")
    for item in comparisons:
        rounds = "  ".join(_ratio(value) for value in item.ratios)
        table.add_row(str(item.point), item.metric, rounds, _ratio(item.median))
    console.print(table)


def _latency_table(summary: Summary) -> Table:
    table = Table(title="latency (milliseconds)", title_justify="left")
    for column in ("", "mean", "p50", "p90", "p95", "p99", "max", "count"):
        table.add_column(column, justify="right")
    spreads = {"TTFT": summary.ttft_ms, "ITL": summary.itl_ms, "TPOT": summary.tpot_ms, "E2E": summary.e2e_ms}
    for name, spread in spreads.items():
        if spread is None:
            table.add_row(name, *["-"] * 6, "0")
        else:
            values = (spread.mean, spread.p50, spread.p90, spread.p95, spread.p99, spread.max)
            table.add_row(name, *[_ms(value) for value in values], str(spread.count))
    return table


def _rate_lines(summary: Summary) -> str:
    totals, rates, tokens = summary.totals, summary.throughput, summary.tokens
    lines = [
        f"sent {totals.sent} = ok {totals.ok} + errors {totals.errors} + disconnected {totals.disconnected}"
        f"   in {summary.duration_seconds:.2f} s",
        f"{rates.requests:.2f} req/s   output {rates.output_tokens:.1f} tok/s   prompt {rates.prompt_tokens:.1f} tok/s"
        f"   total {rates.total_tokens:.1f} tok/s",
        f"tokens: prompt {tokens.prompt} (cached {tokens.cached_prompt})   output {tokens.output}"
        f"   in flight: mean {summary.mean_in_flight:.1f}, peak {summary.peak_in_flight}",
    ]
    return "\n".join(lines + ([] if summary.goodput is None else [_goodput_line(summary.goodput)]))


def _goodput_line(goodput: Goodput) -> str:
    limits = goodput.limits
    named = {"ttft": limits.ttft, "itl": limits.itl, "tpot": limits.tpot, "e2e": limits.e2e}
    shown = " ".join(f"{name}:{value:g}" for name, value in named.items() if value is not None)
    return f"goodput ({shown}): {goodput.share:.1%} of requests, {goodput.requests_per_second:.2f} req/s"


def _notes(run: Run, continuous_usage: bool) -> list[str]:
    summary, tokens = run.summary, run.summary.tokens
    notes = []
    if run.step.point.kind == "rate":
        notes.append(f"latencies count from the intended send time; largest lag {summary.max_send_lag_ms:.1f} ms")
    if summary.max_send_lag_ms > LATE_MS:
        notes.append("the load generator sent late; it may have been short of processor time")
    if run.client_cpu_share > BUSY_CLIENT and summary.duration_seconds > SHORT_SECONDS:
        notes.append(f"the load generator used {run.client_cpu_share:.0%} of a processor and may have been the limit")
    if tokens.per_chunk is not None and tokens.per_chunk > 1.05 and not continuous_usage:
        notes.append(f"ITL is per chunk, and chunks held {tokens.per_chunk:.2f} tokens; try --continuous-usage")
    if tokens.requests_without_usage:
        notes.append(f"{tokens.requests_without_usage} answers had no usage; their output tokens are chunks counted")
    if summary.totals.empty:
        notes.append(f"{summary.totals.empty} answers were empty")
    if run.warmup_errors:
        notes.append(f"errors during warm-up: {run.warmup_errors}")
    return notes


def _p50_p99(spread: Spread | None) -> tuple[float | None, float | None]:
    return (None, None) if spread is None else (spread.p50, spread.p99)


def _ms(value: float | None) -> str:
    """Two decimals, fewer from 1,000 ms on, where they would only widen the table."""
    return "-" if value is None else f"{value:.2f}" if value < 1000 else f"{value:.0f}"


def _ratio(value: float | None) -> str:
    return "-" if value is None else f"{value:.3f}"
