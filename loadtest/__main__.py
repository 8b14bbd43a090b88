"""The `minigpt-loadtest` command: settings in, tables and files out, an exit code that tells whether all went well."""

import asyncio
import gc
import sys
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path

import uvloop
from rich.console import Console
from rich.markup import escape

from loadtest.command_line import PROGRAM, parse
from loadtest.config import Config
from loadtest.document import document
from loadtest.fitting import told
from loadtest.measure import Run, measure, resolve
from loadtest.plots import plot_runs
from loadtest.progress import LiveProgress
from loadtest.record import RequestError
from loadtest.refusal import ConfigError, refuse
from loadtest.report import show_run, show_sweep, show_versus
from loadtest.versus import compare


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command; the exit code is returned."""
    try:
        config = parse(sys.argv[1:] if arguments is None else arguments)
        lines = _read_prompts(config.requests.prompts)
        return _run(config, lines)
    except ConfigError as problem:
        print(f"{PROGRAM}: {problem}", file=sys.stderr)
        return 2
    except RequestError as problem:
        print(f"{PROGRAM}: cannot begin: {problem}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print(f"{PROGRAM}: interrupted", file=sys.stderr)
        return 130


def _run(config: Config, lines: Sequence[str]) -> int:
    console = Console()
    started_at = datetime.now(UTC).isoformat(timespec="seconds")
    # A collection need not walk what was imported: it would stop every stream for a tenth of a second.
    gc.freeze()
    # This loop takes half the processor time of asyncio's own to read a token from a socket.
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        asked, config = config, runner.run(resolve(config))
        if note := told(asked.requests, config.requests):
            console.print(f"note: {escape(note)}", highlight=False, soft_wrap=True)
        runs = runner.run(_measure(config, lines, console))
    comparisons = compare(runs)
    if len({run.step.point for run in runs}) > 1:
        show_sweep(console, runs)
    if comparisons:
        show_versus(console, comparisons)
    if config.report.json is not None:
        config.report.json.write_bytes(document(config, runs, started_at))
    if config.report.plot is not None:
        plot_runs(config.report.plot, runs)
    had_errors = any(run.summary.totals.errors or run.warmup_errors for run in runs)
    return 1 if had_errors and not config.report.allow_errors else 0


async def _measure(config: Config, lines: Sequence[str], console: Console) -> list[Run]:
    runs = []
    with LiveProgress(console) as progress:
        async for run in measure(config, lines, progress):
            show_run(console, run, config.requests.continuous_usage)
            runs.append(run)
    return runs


def _read_prompts(path: Path | None) -> list[str]:
    if path is None:
        return []
    try:
        lines = [line for line in path.read_text(encoding="utf-8").splitlines() if line.strip()]
    except (OSError, UnicodeDecodeError) as problem:
        refuse("prompts", path, f"cannot be read: {problem}")
    if not lines:
        refuse("prompts", path, "must hold at least one line")
    return lines


if __name__ == "__main__":
    sys.exit(main())
