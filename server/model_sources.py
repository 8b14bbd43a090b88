"""Which checkpoints are to be served under which names. Looks at folders and never opens a file."""

import re
from collections.abc import Sequence
from pathlib import Path

from server.config import refuse, require
from server.protocol import ModelSource

# What a checkpoint folder must hold: of each row, one. Large ones come in shards with an index.
REQUIRED_FILES = (("config.json",), ("model.safetensors", "model.safetensors.index.json"), ("tokenizer.json",))
# Where a training run keeps its checkpoint.
RUN_CHECKPOINT = "checkpoint"
# How the folder of a draft model ends that is found without being named.
DRAFT_SUFFIX = "-draft"
# What fits unquoted into a URL, a log line and a metric label.
NAME_PATTERN = re.compile(r"[A-Za-z0-9][A-Za-z0-9._:/-]{0,127}")


def resolve_models(arguments: Sequence[str], default_folder: Path) -> tuple[ModelSource, ...]:
    """The models asked for, or else every checkpoint in `default_folder`, by name. Raises CannotStart."""
    if not arguments:
        return _all_checkpoints(default_folder)
    sources = tuple(_parse(argument) for argument in arguments)
    names = [source.name for source in sources]
    for argument, name in zip(arguments, names, strict=True):
        require(names.count(name) == 1, "model", argument, f"the name {name} is given twice; use NAME=PATH")
    return sources


def checked_folder(option: str, argument: str, path: str) -> Path:
    """The checkpoint folder that an argument of `option` names. Raises CannotStart if it is none."""
    folder = Path(path).resolve()
    require(folder.is_dir(), option, argument, "there is no such folder")
    missing = _missing_files(folder)
    within = f"; there is a checkpoint in {path}/{RUN_CHECKPOINT}" if is_complete(folder / RUN_CHECKPOINT) else ""
    require(not missing, option, argument, f"the folder has no {' and no '.join(missing)}{within}")
    return folder


def is_complete(folder: Path) -> bool:
    """Whether the folder holds all that a checkpoint must. One that a training run is writing just now does not."""
    return not _missing_files(folder)


def _parse(argument: str) -> ModelSource:
    name, equals, path = argument.partition("=")
    if not equals or Path(argument).is_dir():
        path = argument
        name = Path(argument).resolve().name
    folder = checked_folder("model", argument, path)
    require(bool(NAME_PATTERN.fullmatch(name)), "model", argument, f"the name must match {NAME_PATTERN.pattern}")
    return ModelSource(name, str(folder))


def _all_checkpoints(folder: Path) -> tuple[ModelSource, ...]:
    """Folders that are not complete are left out, and so are drafts, which serve beside others."""
    found = [
        ModelSource(candidate.name, str(candidate))
        for candidate in sorted(folder.glob("*"))
        if NAME_PATTERN.fullmatch(candidate.name)
        and is_complete(candidate)
        and not candidate.name.endswith(DRAFT_SUFFIX)
    ]
    if not found:
        refuse("model", "(not given)", f"and there is no checkpoint in {folder}; name one, or train one first")
    return tuple(found)


def _missing_files(folder: Path) -> list[str]:
    return [names[0] for names in REQUIRED_FILES if not any((folder / name).is_file() for name in names)]
