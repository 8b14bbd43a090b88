"""What a run must remember to go on as if never interrupted, in one atomically replaced file. Knows no data."""

from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import TypedDict

import torch
from torch import Tensor

from model.files import replace_file
from model.gpt import GPT
from training.config import TrainingError
from training.optimizers import Optimizers
from training.progress import Progress

STATE_FILE = "state.pt"


class _Stored(TypedDict):
    progress: dict[str, int | float]
    model: Mapping[str, Tensor]
    optimizers: list[dict[str, object]]


def save_state(path: Path, progress: Progress, model: GPT, optimizers: Optimizers) -> None:
    """Replace the file at `path`; a crash leaves the old one or the new one."""
    stored: _Stored = {
        "progress": asdict(progress),
        "model": model.state_dict(),
        "optimizers": optimizers.state_dicts(),
    }
    replace_file(path, lambda file: torch.save(stored, file))


def load_state(path: Path, model: GPT, optimizers: Optimizers) -> Progress:
    """Fill `model` and `optimizers` from the file at `path`, which can hold nothing but data."""
    if not path.is_file():
        raise TrainingError(f"{path} does not exist; there is nothing to resume")
    device = model.embedding.weight.device
    stored: _Stored = torch.load(path, map_location=device, weights_only=True)
    model.load_state_dict(stored["model"])
    optimizers.load_state_dicts(stored["optimizers"])
    progress = stored["progress"]
    return Progress(
        step=int(progress["step"]),
        seconds=float(progress["seconds"]),
        num_evaluations=int(progress["num_evaluations"]),
        best_loss=float(progress["best_loss"]),
    )
