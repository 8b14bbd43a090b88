"""Which draft model guesses for which served model. Looks at folders and compares tokenizer files byte by byte."""

import filecmp
from collections.abc import Mapping, Sequence
from pathlib import Path

import msgspec

from server.config import refuse, require
from server.engine.types import DraftMethod
from server.model_sources import DRAFT_SUFFIX, checked_folder, is_complete
from server.protocol import ModelSource

NO_DRAFTS = "off"
TOKENIZER_FILE = "tokenizer.json"


def assign_drafts(sources: Sequence[ModelSource], arguments: Sequence[str]) -> tuple[ModelSource, ...]:
    """Each model with its draft, if there is one: the first that is named for it or shares its tokenizer.

    Without arguments that is a folder beside the model's whose name ends in "-draft". Raises CannotStart.
    """
    if tuple(arguments) == (NO_DRAFTS,):
        return tuple(sources)
    if not arguments:
        return tuple(_with_draft(source, _draft_beside(Path(source.path))) for source in sources)
    named: dict[str, Path] = {}
    for argument in arguments:
        named |= {name: folder for name, folder in _parse(argument, sources).items() if name not in named}
    return tuple(_with_draft(source, named.get(source.name)) for source in sources)


def check_default(method: DraftMethod, sources: Sequence[ModelSource]) -> None:
    """Raises CannotStart when requests are to be drafted for by a model that there is none of."""
    without = [source.name for source in sources if source.draft is None]
    require(
        method != "draft" or not without,
        "speculative",
        method,
        f"no draft for {', '.join(without)}; use auto, or --draft",
    )


def _parse(argument: str, sources: Sequence[ModelSource]) -> Mapping[str, Path]:
    name, equals, path = argument.partition("=")
    if not equals or Path(argument).is_dir():
        folder = checked_folder("draft", argument, argument)
        fitting = [source.name for source in sources if _share_tokenizer(folder, Path(source.path))]
        require(bool(fitting), "draft", argument, f"no served model has the same {TOKENIZER_FILE}; use NAME=PATH")
        return dict.fromkeys(fitting, folder)
    if name not in {source.name for source in sources}:
        refuse("draft", argument, f"no model {name} is served")
    return {name: checked_folder("draft", argument, path)}


def _draft_beside(checkpoint: Path) -> Path | None:
    fitting = (
        folder
        for folder in sorted(checkpoint.parent.glob(f"*{DRAFT_SUFFIX}"))
        if folder != checkpoint and is_complete(folder) and _share_tokenizer(folder, checkpoint)
    )
    return next(fitting, None)


def _share_tokenizer(one: Path, other: Path) -> bool:
    return filecmp.cmp(one / TOKENIZER_FILE, other / TOKENIZER_FILE, shallow=False)


def _with_draft(source: ModelSource, draft: Path | None) -> ModelSource:
    return source if draft is None else msgspec.structs.replace(source, draft=str(draft))
