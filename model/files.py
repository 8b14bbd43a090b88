"""The files of a checkpoint folder: bounded JSON in, atomic replacement out, and the error both sides raise.

Knows no tensor and no field name; imports no torch.
"""

import json
import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import BinaryIO

# Far above any real config.json, small enough that parsing one is never a burden.
MAX_CONFIG_BYTES = 1_000_000


class CheckpointError(ValueError):
    """A checkpoint or tokenizer folder cannot be used; the message names the file and the tensor or field."""


def read_json(path: Path, max_bytes: int = MAX_CONFIG_BYTES) -> dict[str, object]:
    """The JSON object in `path`. Raises CheckpointError, naming the file, for anything else."""
    return parse_json(read_bytes(path, max_bytes), str(path))


def read_json_if_present(path: Path) -> dict[str, object]:
    """The JSON object in `path`, or an empty one where there is no such file."""
    return read_json(path) if path.exists() else {}


def read_bytes(path: Path, max_bytes: int) -> bytes:
    """The contents of a file that must not be longer than `max_bytes`."""
    try:
        with path.open("rb") as file:
            data = file.read(max_bytes + 1)
    except OSError as error:
        raise CheckpointError(f"{path}: cannot be read: {error.strerror}") from error
    if len(data) > max_bytes:
        raise CheckpointError(f"{path}: is longer than {max_bytes} bytes")
    return data


def parse_json(data: bytes, source: str) -> dict[str, object]:
    """The JSON object in `data`; NaN, infinities and repeated keys are refused. `source` is named in errors."""
    try:
        value = json.loads(data.decode(), parse_constant=_refuse_constant, object_pairs_hook=_unique_keys)
    except (ValueError, RecursionError) as error:
        raise CheckpointError(f"{source}: is not valid JSON: {error}") from error
    if not isinstance(value, dict):
        raise CheckpointError(f"{source}: holds no JSON object")
    return value


def json_bytes(value: Mapping[str, object]) -> bytes:
    """`value` as people read it: indented, one trailing newline."""
    return (json.dumps(value, indent=2, ensure_ascii=False, allow_nan=False) + "\n").encode()


def replace_file(path: Path, write: Callable[[BinaryIO], object]) -> None:
    """Put what `write` writes at `path`, so that readers and crashes see the old file or the new one, never a part."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        with temporary.open("wb") as file:
            write(file)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)
    _sync_folder(path.parent)


def replace_bytes(path: Path, data: bytes) -> None:
    """`replace_file` for contents already at hand."""
    replace_file(path, lambda file: file.write(data))


def _sync_folder(folder: Path) -> None:
    # A rename survives a power failure only once the folder itself has reached the disk.
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _refuse_constant(name: str) -> object:
    raise ValueError(f"{name} is not a JSON number")


def _unique_keys(pairs: list[tuple[str, object]]) -> dict[str, object]:
    found = dict(pairs)
    if len(found) < len(pairs):
        names = [name for name, _ in pairs]
        repeated = next(name for name in names if names.count(name) > 1)
        raise ValueError(f"key {repeated!r} appears twice")
    return found
