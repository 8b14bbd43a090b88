"""A model as clients see it: name, tokenizer, chat template, defaults. It knows no weights, no engine and no HTTP."""

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Protocol, TypeVar

from server.api.detokenizer import WholeTexts
from server.engine.params import SamplingParams

T = TypeVar("T")


class Tokenizer(Protocol):
    """The part of `model.tokenizer.Tokenizer` the HTTP edge uses."""

    @property
    def vocab_size(self) -> int: ...

    @property
    def eos_token_ids(self) -> tuple[int, ...]: ...

    @property
    def bos_token_id(self) -> int | None: ...

    @property
    def special_ids(self) -> frozenset[int]: ...

    @property
    def chat_template(self) -> str | None: ...

    @property
    def max_token_bytes(self) -> int | None:
        """The most UTF-8 bytes of text that one token can cover; None if there is no such bound."""
        ...

    def encode(self, text: str, add_special_tokens: bool = True) -> list[int]:
        """Special tokens written out in `text` are recognised; the flag is about those put around every text."""
        ...

    def decode(self, ids: Iterable[int]) -> str: ...

    def token_bytes(self, id: int) -> bytes:
        """The bytes a token adds to the text; b"" for special tokens."""
        ...


@dataclass(frozen=True)
class GenerationDefaults:
    """What a checkpoint recommends for parameters a request leaves out. None leaves it to the server's default."""

    temperature: float | None = None
    top_k: int | None = None
    top_p: float | None = None
    min_p: float | None = None
    repetition_penalty: float | None = None

    def __post_init__(self) -> None:
        """Raises ParameterError for a value no request could ask for."""
        server = SamplingParams()
        SamplingParams(
            temperature=_first(self.temperature, server.temperature),
            top_k=_first(self.top_k, server.top_k),
            top_p=_first(self.top_p, server.top_p),
            min_p=_first(self.min_p, server.min_p),
            repetition_penalty=_first(self.repetition_penalty, server.repetition_penalty),
        )

    def given(self) -> dict[str, float]:
        return {name: value for name, value in vars(self).items() if value is not None}


@dataclass(frozen=True)
class ServedModel:
    """One entry of /v1/models."""

    name: str
    checkpoint: Path
    tokenizer: Tokenizer
    chat_template: str | None  # None: the plain default
    created: int  # seconds since 1970
    defaults: GenerationDefaults = field(default_factory=GenerationDefaults)
    special_tokens: Mapping[str, str] = field(default_factory=dict)  # bos_token and the like, for the template

    @cached_property
    def token_bytes(self) -> tuple[bytes, ...]:
        """Of every token, what it adds to the text; read out once, for words are looked for in all of them."""
        return tuple(self.tokenizer.token_bytes(token) for token in range(self.tokenizer.vocab_size))

    @cached_property
    def whole_texts(self) -> WholeTexts:
        """Of tokens that streams had, what stands in their events."""
        return WholeTexts(self.tokenizer.token_bytes)


def load_served_model(name: str, checkpoint: Path, tokenizer: Tokenizer) -> ServedModel:
    """Everything but the tokenizer is read from the folder: generation_config.json and tokenizer_config.json if there.

    Raises ParameterError when the checkpoint recommends an impossible value, ValueError when a file is not JSON.
    """
    return ServedModel(
        name=name,
        checkpoint=checkpoint,
        tokenizer=tokenizer,
        chat_template=tokenizer.chat_template,
        created=int((checkpoint / "config.json").stat().st_mtime),
        defaults=_read_defaults(checkpoint),
        special_tokens=_read_special_tokens(checkpoint),
    )


def _read_defaults(checkpoint: Path) -> GenerationDefaults:
    given = _read_json(checkpoint / "generation_config.json")
    floats = {name: _number(given.get(name)) for name in ("temperature", "top_p", "min_p", "repetition_penalty")}
    top_k = given.get("top_k")
    return GenerationDefaults(top_k=top_k if isinstance(top_k, int) else None, **floats)


def _read_special_tokens(checkpoint: Path) -> dict[str, str]:
    """`bos_token` and its like are strings, or objects with the string under "content"."""
    tokens: dict[str, str] = {}
    for name, value in _read_json(checkpoint / "tokenizer_config.json").items():
        content = value.get("content") if isinstance(value, dict) else value
        if name.endswith("_token") and isinstance(content, str):
            tokens[name] = content
    return tokens


def _read_json(path: Path) -> dict[str, object]:
    value = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
    return value if isinstance(value, dict) else {}


def _first(value: T | None, default: T) -> T:
    return default if value is None else value


def _number(value: object) -> float | None:
    return float(value) if isinstance(value, int | float) and not isinstance(value, bool) else None
