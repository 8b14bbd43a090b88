"""The command line: `minigpt-train PRESET [--field value]` and `minigpt-train report RUN ...`; the composition root."""

import os
import signal
import sys
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from types import FrameType

import torch
import tyro

from model.config import ConfigError
from model.files import CheckpointError
from training.config import TrainConfig, TrainingError
from training.parallel import join_workers
from training.presets import presets
from training.report import ReportOptions, report
from training.run import train

DESCRIPTION = """Train a model from a preset, any setting of which can be changed:

  minigpt-train PRESET --help
  minigpt-train PRESET --data.path texts/ --out runs/mine --length.max-steps 500

Compare runs by their logs, and list or check the shipped checkpoints:

  minigpt-train report RUN ... --plot both.png
  python -m training.manifest --help
"""
INTERRUPTED = 130  # what shells expect of a program ended by Ctrl-C


def main() -> None:
    """Entry point of `minigpt-train`."""
    # Normed queries and keys are bfloat16 under autocast and their weights are not; torch then takes another path to
    # the same numbers and says so.
    warnings.filterwarnings("ignore", message="Mismatch dtype between input and weight")
    try:
        sys.exit(run(sys.argv[1:], os.environ))
    except (TrainingError, ConfigError, CheckpointError) as error:
        print(f"minigpt-train: {error}", file=sys.stderr)
        sys.exit(2)


def run(arguments: Sequence[str], environment: Mapping[str, str]) -> int:
    """Exit status of the command `arguments`."""
    if arguments[:1] == ["report"]:
        report(tyro.cli(ReportOptions, prog="minigpt-train report", args=arguments[1:]), sys.stdout)
        return 0
    config = tyro.extras.overridable_config_cli(
        presets(), prog="minigpt-train", description=DESCRIPTION, args=arguments
    )
    return train_with_signals(config, environment)


def train_with_signals(config: TrainConfig, environment: Mapping[str, str]) -> int:
    """Train; the first SIGINT or SIGTERM ends the run after its step, with its state saved."""
    if config.threads is not None:
        torch.set_num_threads(config.threads)
    workers = join_workers(environment, torch.device(config.device))
    try:
        with _stop_request() as should_stop:
            finished = train(config, workers, sys.stderr, should_stop)
    finally:
        workers.close()
    if not finished and workers.rank == 0:
        print("minigpt-train: interrupted; go on with --resume", file=sys.stderr)
    return 0 if finished else INTERRUPTED


@contextmanager
def _stop_request() -> Iterator[Callable[[], bool]]:
    """Whether a signal has asked to stop; a second one ends the program at once."""
    received: list[int] = []

    def receive(number: int, frame: FrameType | None) -> None:
        received.append(number)
        signal.signal(number, signal.SIG_DFL)

    before = {number: signal.signal(number, receive) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield lambda: bool(received)
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


if __name__ == "__main__":
    main()
