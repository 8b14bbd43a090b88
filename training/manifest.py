"""The shipped checkpoints: published from runs, listed with their hashes and recipes, verified. Knows no tensors.

`python -m training.manifest publish RUN ...` and `python -m training.manifest verify`.
"""

import hashlib
import json
import shutil
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, TextIO

import tyro

from model.files import CheckpointError, read_bytes, read_json, replace_bytes
from training.config import TrainingError
from training.journal import CURVE_FILE
from training.log import LOG_FILE, number, read_log
from training.loop import CHECKPOINT_FOLDER
from training.run import RECIPE_FILE

MANIFEST_FILE = "MANIFEST.json"
MAX_WEIGHTS_BYTES = 4_000_000  # the repository's limit for a shipped checkpoint
MAX_FILE_BYTES = 64_000_000
# What is listed of the best evaluation; the agreement only where there was a target.
EVALUATION_FIELDS = ("step", "seconds", "tokens", "validation_loss", "validation_agreement")


@dataclass(frozen=True)
class Publish:
    """Copy the best checkpoint of each run, with its recipe, log and curve, and list them in the manifest."""

    runs: Annotated[tuple[Path, ...], tyro.conf.Positional]
    """Folders of runs; a run's name becomes the checkpoint's."""
    checkpoints: Path = Path("checkpoints")
    """Where the checkpoints and the manifest stand."""


@dataclass(frozen=True)
class Verify:
    """Check that every listed file is there with its hash, and that nothing else is."""

    checkpoints: Path = Path("checkpoints")
    """Where the checkpoints and the manifest stand."""


def publish(options: Publish) -> None:
    """Replace `checkpoints/NAME` for every run and rewrite the manifest.

    Raises TrainingError when a run has no evaluated checkpoint or its weights are too large.
    """
    for run in options.runs:
        target = options.checkpoints / run.resolve().name
        files = _files_to_publish(run)
        if target.exists():
            shutil.rmtree(target)
        target.mkdir(parents=True)
        for file in files:
            replace_bytes(target / file.name, read_bytes(file, MAX_FILE_BYTES))
    write_manifest(options.checkpoints)


def write_manifest(checkpoints: Path) -> None:
    """List all checkpoints under `checkpoints`."""
    entries = {folder.name: _entry(folder) for folder in sorted(checkpoints.iterdir()) if folder.is_dir()}
    replace_bytes(checkpoints / MANIFEST_FILE, (json.dumps(entries, indent=2) + "\n").encode())


def problems(checkpoints: Path) -> list[str]:
    """What is wrong with the checkpoints, one line each; empty when all is as listed."""
    manifest = read_json(checkpoints / MANIFEST_FILE)
    listed: dict[str, object] = {}
    for name, entry in manifest.items():
        files = entry.get("files") if isinstance(entry, dict) else None
        if not isinstance(files, dict):
            return [f"{name}: its entry in {MANIFEST_FILE} lists no files"]
        listed.update({f"{name}/{file}": details for file, details in files.items()})
    present = {str(path.relative_to(checkpoints)) for path in checkpoints.rglob("*") if path.is_file()}
    present.discard(MANIFEST_FILE)
    found = [f"{name}: is missing" for name in sorted(listed.keys() - present)]
    found += [f"{name}: is not listed" for name in sorted(present - listed.keys())]
    changed = (name for name in sorted(listed.keys() & present) if _details(checkpoints / name) != listed[name])
    return found + [f"{name}: differs from what is listed" for name in changed]


def _files_to_publish(run: Path) -> list[Path]:
    folder = run / CHECKPOINT_FOLDER
    weights = folder / "model.safetensors"
    if not weights.is_file():
        raise TrainingError(f"{run} holds no evaluated checkpoint")
    size = weights.stat().st_size
    if size > MAX_WEIGHTS_BYTES:
        raise TrainingError(f"{weights} has {size} bytes; the limit is {MAX_WEIGHTS_BYTES}")
    return [*sorted(folder.iterdir()), run / RECIPE_FILE, run / LOG_FILE, run / CURVE_FILE]


def _entry(folder: Path) -> Mapping[str, object]:
    evaluations = [record for record in read_log(folder / LOG_FILE) if record["kind"] == "evaluation"]
    best = min(evaluations, key=lambda record: number(record, "validation_loss"))
    return {
        "best": {field: best[field] for field in EVALUATION_FIELDS if field in best},
        "recipe": read_json(folder / RECIPE_FILE),
        "files": {file.name: _details(file) for file in sorted(folder.iterdir())},
    }


def _details(file: Path) -> Mapping[str, object]:
    data = read_bytes(file, MAX_FILE_BYTES)
    return {"bytes": len(data), "sha256": hashlib.sha256(data).hexdigest()}


def run(arguments: Sequence[str], stream: TextIO) -> int:
    """Exit status of the command `arguments`: 1 when verification finds something."""
    command = tyro.cli(Publish | Verify, prog="python -m training.manifest", args=arguments)
    if isinstance(command, Publish):
        publish(command)
        return 0
    found = problems(command.checkpoints)
    stream.writelines(f"{line}\n" for line in found or ["all files are as listed"])
    return 1 if found else 0


def main() -> None:
    """Entry point of `python -m training.manifest`."""
    try:
        sys.exit(run(sys.argv[1:], sys.stdout))
    except (TrainingError, CheckpointError) as error:
        print(f"training.manifest: {error}", file=sys.stderr)
        sys.exit(2)


if __name__ == "__main__":
    main()
