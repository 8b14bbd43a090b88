"""Text to learn from: documents from a file, a folder or the plays, split into training and validation. No tokens."""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from training.config import TrainingError, refuse
from training.shakespeare import plain_text, read_plays


@dataclass(frozen=True)
class Document:
    """One text and where it came from."""

    name: str
    text: str


@dataclass(frozen=True)
class Corpus:
    """Training and validation documents; none is empty."""

    training: tuple[Document, ...]
    validation: tuple[Document, ...]
    is_one_document: bool  # both splits are parts of it

    def fingerprint(self) -> str:
        """SHA-256 of all names and texts, in order."""
        digest = hashlib.sha256()
        for split in (self.training, self.validation):
            for document in split:
                digest.update(f"{document.name}\0{document.text}\0".encode())
            digest.update(b"\0")
        return digest.hexdigest()


def read_documents(path: Path | None) -> tuple[Document, ...]:
    """The documents under `path` as DataOptions.path describes it."""
    if path is None or path.suffix == ".whl":
        return tuple(Document(name, plain_text(markdown)) for name, markdown in read_plays(path))
    if path.is_dir():
        files = sorted(path.glob("*.txt"))
        if not files:
            refuse("data.path", path, "must hold .txt files")
        return tuple(Document(file.name, _read_text(file)) for file in files)
    return (Document(path.name, _read_text(path)),)


def split_documents(documents: Sequence[Document], fraction: float) -> Corpus:
    """One document gives its last `fraction`; of several, every 1/fraction-th is held out whole, so that validation
    asks about plays, and people, that training has not seen."""
    if len(documents) == 1:
        name, text = documents[0].name, documents[0].text
        border = int(len(text) * (1 - fraction))
        if not 0 < border < len(text):
            raise TrainingError(f"{name} has {len(text)} characters, too few to hold out {fraction}")
        return Corpus((Document(name, text[:border]),), (Document(name, text[border:]),), True)
    every = min(round(1 / fraction), len(documents))
    held_out = {place for place in range(len(documents)) if place % every == every // 2}
    return Corpus(
        tuple(document for place, document in enumerate(documents) if place not in held_out),
        tuple(document for place, document in enumerate(documents) if place in held_out),
        False,
    )


def _read_text(path: Path) -> str:
    try:
        text = path.read_text(encoding="utf-8")
    except OSError as error:
        raise TrainingError(f"{path} cannot be read: {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise TrainingError(f"{path} is not UTF-8 text: byte {error.start}") from error
    if not text:
        raise TrainingError(f"{path} is empty")
    return text
