"""A live line in the terminal while requests run: done, in flight, failed, speed. Shows nothing elsewhere."""

from types import TracebackType

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn, TimeElapsedColumn

from loadtest.plan import Step
from loadtest.record import Record


class LiveProgress:
    """Watches runs; use it as a context. Drawn four times a second, so that drawing takes no time from the client."""

    def __init__(self, console: Console) -> None:
        self._progress = Progress(
            TextColumn("{task.description}"),
            BarColumn(bar_width=None),
            MofNCompleteColumn(),
            TextColumn("{task.fields[note]}"),
            TimeElapsedColumn(),
            console=console,
            refresh_per_second=4,
            transient=True,
            disable=not console.is_terminal,
        )
        self._task: TaskID | None = None
        self._in_flight = self._num_errors = self._num_tokens = 0

    def __enter__(self) -> "LiveProgress":
        self._progress.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._progress.stop()

    def begin(self, step: Step, num_requests: int | None) -> None:
        """Start a new line for a run."""
        if self._task is not None:
            self._progress.remove_task(self._task)
        self._in_flight = self._num_errors = self._num_tokens = 0
        self._task = self._progress.add_task(f"{step.label} at {step.point}", total=num_requests, note="")

    def started(self) -> None:
        """Count a request as under way."""
        self._in_flight += 1

    def finished(self, record: Record) -> None:
        """Count a request as done."""
        assert self._task is not None
        self._in_flight -= 1
        self._num_errors += record.outcome == "error"
        self._num_tokens += record.output_tokens
        elapsed = self._progress.tasks[0].elapsed or 0.0
        speed = self._num_tokens / elapsed if elapsed > 0 else 0.0
        note = f"{self._in_flight} in flight  {self._num_errors} errors  {speed:.0f} tok/s"
        self._progress.update(self._task, advance=1, note=note)
