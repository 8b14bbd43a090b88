"""PNG plots: latency and throughput against load for a sweep, latency distributions for one load."""

from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from statistics import median

from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from loadtest.measure import Run
from loadtest.record import Record
from loadtest.statistics import Spread, Summary

Latency = Callable[[Summary], Spread | None]
LATENCIES: dict[str, Latency] = {
    "TTFT": lambda summary: summary.ttft_ms,
    "ITL": lambda summary: summary.itl_ms,
    "E2E": lambda summary: summary.e2e_ms,
}
TIMES: dict[str, Callable[[Record], Sequence[float | None]]] = {
    "TTFT": lambda record: [record.ttft],
    "ITL": lambda record: record.itls,
    "TPOT": lambda record: [record.tpot],
    "E2E": lambda record: [record.e2e],
}


def plot_runs(path: Path, runs: Sequence[Run]) -> None:
    """Write one PNG for these runs, which must not be empty."""
    figure = Figure(figsize=(11, 8), layout="constrained")
    FigureCanvasAgg(figure)
    panels: list[Axes] = list(figure.subplots(2, 2).flat)
    if len({run.step.point for run in runs}) > 1:
        _plot_sweep(panels, runs)
    else:
        _plot_distributions(panels, runs)
    for panel in panels:
        panel.grid(alpha=0.3)
        if panel.get_legend_handles_labels()[0]:
            panel.legend()
    figure.savefig(path, dpi=120)


def _plot_sweep(panels: Sequence[Axes], runs: Sequence[Run]) -> None:
    kind = runs[0].step.point.kind
    for panel, (name, read) in zip(panels, LATENCIES.items(), strict=False):
        for label in _labels(runs):
            _line(panel, runs, label, partial(_read_p50, read), "p50")
            _line(panel, runs, label, partial(_read_p99, read), "p99")
        panel.set(title=name, ylabel="milliseconds", ylim=(0, None))
    for label in _labels(runs):
        _line(panels[3], runs, label, lambda summary: summary.throughput.output_tokens, "output tok/s")
    panels[3].set(title="throughput", ylabel="tokens per second", ylim=(0, None))
    loads = sorted({run.step.point.value for run in runs})
    for panel in panels:
        # Loads are mostly chosen by doubling, so doublings are drawn equally far apart.
        panel.set_xscale("log", base=2)
        panel.set_xticks(loads, labels=[f"{load:g}" for load in loads])
        panel.set_xlabel("requests in flight" if kind == "concurrency" else "requests sent per second")


def _line(panel: Axes, runs: Sequence[Run], label: str, read: Callable[[Summary], float | None], name: str) -> None:
    """One server's line through its loads; a load measured in several rounds is drawn at their median."""
    values: dict[float, list[float]] = {}
    for run in runs:
        value = read(run.summary)
        if run.step.label == label and value is not None:
            values.setdefault(run.step.point.value, []).append(value)
    loads = sorted(values)
    style = "--" if name == "p99" else "-"
    color = "C0" if label == "A" else "C1"
    if loads:
        heights = [median(values[load]) for load in loads]
        panel.plot(loads, heights, style, color=color, marker="o", label=f"{label} {name}")


def _plot_distributions(panels: Sequence[Axes], runs: Sequence[Run]) -> None:
    """The share of values at or below each latency, all rounds of a server together."""
    for panel, (name, read) in zip(panels, TIMES.items(), strict=True):
        for label in _labels(runs):
            ok = [r for run in runs if run.step.label == label for r in run.records if r.outcome == "ok"]
            times = sorted(1000 * value for record in ok for value in read(record) if value is not None)
            shares = [(number + 1) / len(times) for number in range(len(times))]
            if times:
                panel.plot(times, shares, color="C0" if label == "A" else "C1", label=label, drawstyle="steps-post")
        panel.set(title=f"{name} at {runs[0].step.point}", xlabel="milliseconds", ylabel="share", ylim=(0, 1.02))


def _labels(runs: Sequence[Run]) -> list[str]:
    return sorted({run.step.label for run in runs})


def _read_p50(latency: Latency, summary: Summary) -> float | None:
    spread = latency(summary)
    return None if spread is None else spread.p50


def _read_p99(latency: Latency, summary: Summary) -> float | None:
    spread = latency(summary)
    return None if spread is None else spread.p99
