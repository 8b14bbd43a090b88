"""Loss curves of one or several runs as a PNG, drawn from their logs. Knows nothing of how they were trained."""

from collections.abc import Mapping, Sequence
from pathlib import Path

from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from model.files import replace_file
from training.log import Record, number

SMOOTHING = 0.9  # of the training loss, which is that of single batches


def plot_curves(runs: Mapping[str, Sequence[Record]], path: Path) -> None:
    """Training (thin) and validation loss (marked) of every run, over steps and over seconds."""
    figure = Figure(figsize=(11, 4.5), layout="constrained")
    FigureCanvasAgg(figure)
    for axes, axis in zip(figure.subplots(1, 2, sharey=True), ("step", "seconds"), strict=True):
        for place, (name, records) in enumerate(runs.items()):
            _draw(axes, name, records, axis, f"C{place % 10}")
        axes.set_xlabel({"step": "steps", "seconds": "seconds of training"}[axis])
        axes.grid(alpha=0.3)
    figure.axes[0].set_ylabel("loss (nats per token)")
    if runs:
        figure.axes[0].legend()
    replace_file(path, lambda file: figure.savefig(file, format="png", dpi=120))


def _draw(axes: Axes, name: str, records: Sequence[Record], axis: str, colour: str) -> None:
    steps = [record for record in records if record["kind"] == "step"]
    evaluations = [record for record in records if record["kind"] == "evaluation"]
    losses = smoothed([number(record, "loss") for record in steps])
    axes.plot([number(record, axis) for record in steps], losses, color=colour, alpha=0.5, linewidth=1)
    axes.plot(
        [number(record, axis) for record in evaluations],
        [number(record, "validation_loss") for record in evaluations],
        color=colour,
        marker="o",
        markersize=3,
        label=f"{name}: validation",
    )


def smoothed(values: Sequence[float]) -> list[float]:
    """An exponential running mean, corrected for its start."""
    mean, weight, result = 0.0, 0.0, []
    for value in values:
        mean = SMOOTHING * mean + (1 - SMOOTHING) * value
        weight = SMOOTHING * weight + (1 - SMOOTHING)
        result.append(mean / weight)
    return result
