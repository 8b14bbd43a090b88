"""Compares runs by their logs: a table, what differed in their recipes, and a plot. Trains nothing."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, TextIO

import tyro

from model.files import read_json
from training.config import TrainingError, require
from training.log import LOG_FILE, Record, number, read_log
from training.plots import plot_curves
from training.run import RECIPE_FILE

COLUMNS = ("run", "steps", "tokens", "seconds", "tokens/s", "best", "at step", "last")


@dataclass(frozen=True)
class ReportOptions:
    """Compare training runs by their logs."""

    runs: Annotated[tuple[Path, ...], tyro.conf.Positional]
    """Folders of runs."""
    plot: Path | None = None
    """Draw all loss curves into this PNG."""
    curve: bool = False
    """Also list every evaluation of every run."""

    def __post_init__(self) -> None:
        require(len(self.runs) > 0, "runs", "empty", "must name at least one run's folder")
        require(self.plot is None or self.plot.suffix == ".png", "plot", self.plot, "must end in .png")


def report(options: ReportOptions, stream: TextIO) -> None:
    """Write the comparison to `stream` as Markdown tables. Raises TrainingError when a folder holds no run."""
    logs = {str(folder): read_log(folder / LOG_FILE) for folder in options.runs}
    recipes = {str(folder): dict(_flat(read_json(folder / RECIPE_FILE))) for folder in options.runs}
    stream.write(_table(COLUMNS, [_summary(name, log) for name, log in logs.items()]))
    differences = list(_differences(recipes))
    if differences:
        stream.write("\n" + _table(("setting", *recipes), differences))
    if options.curve:
        rows = [_point(name, record) for name, log in logs.items() for record in _evaluations(name, log)]
        stream.write("\n" + _table(("run", "step", "seconds", "validation loss"), rows))
    if options.plot is not None:
        plot_curves(logs, options.plot)


def _summary(name: str, log: Sequence[Record]) -> tuple[str, ...]:
    evaluations = _evaluations(name, log)
    last = evaluations[-1]
    best = min(evaluations, key=lambda record: number(record, "validation_loss"))
    seconds, tokens = number(last, "seconds"), number(last, "tokens")
    return (
        name,
        f"{number(last, 'step'):.0f}",
        f"{tokens:,.0f}",
        f"{seconds:.1f}",
        f"{tokens / max(seconds, 1e-9):,.0f}",
        f"{number(best, 'validation_loss'):.4f}",
        f"{number(best, 'step'):.0f}",
        f"{number(last, 'validation_loss'):.4f}",
    )


def _point(name: str, record: Record) -> tuple[str, ...]:
    step, seconds, loss = (number(record, field) for field in ("step", "seconds", "validation_loss"))
    return name, f"{step:.0f}", f"{seconds:.1f}", f"{loss:.4f}"


def _evaluations(name: str, log: Sequence[Record]) -> list[Record]:
    found = [record for record in log if record["kind"] == "evaluation"]
    if not found:
        raise TrainingError(f"{name} has not been evaluated yet")
    return found


def _differences(recipes: Mapping[str, Mapping[str, str]]) -> Iterator[tuple[str, ...]]:
    """Settings in which the runs differ; the run's folder is no setting."""
    names = dict.fromkeys(name for recipe in recipes.values() for name in recipe)
    for name in names:
        values = [recipe.get(name, "-") for recipe in recipes.values()]
        if len(set(values)) > 1 and name not in ("out", "resume"):
            yield name, *values


def _flat(value: Mapping[str, object], prefix: str = "") -> Iterator[tuple[str, str]]:
    for name, inner in value.items():
        path = f"{prefix}{name}".removeprefix("config.")
        if isinstance(inner, dict):
            yield from _flat(inner, f"{path}." if path != "config" else "")
        else:
            yield path, str(inner)


def _table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    widths = [max(len(row[place]) for row in (head, *rows)) for place in range(len(head))]
    lines = [head, ["-" * width for width in widths], *rows]
    padded = ([cell.ljust(width) for cell, width in zip(line, widths, strict=True)] for line in lines)
    return "".join("| " + " | ".join(line) + " |\n" for line in padded)
