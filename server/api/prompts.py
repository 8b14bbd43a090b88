"""Prompts to token ids within the model's context. It knows no sampling parameter and no response shape."""

from collections.abc import Sequence
from dataclasses import dataclass

from anyio.to_thread import run_sync

from server.api.fields import Prompt
from server.api.parameters import DEFAULT_COMPLETION_TOKENS
from server.api.served_model import ServedModel
from server.api.settings import LONG_TEXT
from server.engine.types import EngineInfo
from server.errors import BadRequest


@dataclass(frozen=True)
class TokenizedPrompt:
    tokens: tuple[int, ...]
    text: str | None  # None when the client sent token ids
    name: str  # as errors call it: "prompt", "prompt[3]", "messages", "fork"
    num_forked: int = 0  # last tokens that are an earlier answer's output

    @property
    def unforked(self) -> tuple[int, ...]:
        return self.tokens[: len(self.tokens) - self.num_forked]

    @property
    def forked(self) -> tuple[int, ...]:
        return self.tokens[len(self.tokens) - self.num_forked :]


@dataclass(frozen=True)
class TextLimit:
    """The most text worth tokenizing: tokenizing takes time, measuring does not."""

    max_bytes: int | None  # of UTF-8; None is no limit
    reason: str

    @staticmethod
    def of_context(model: ServedModel, info: EngineInfo) -> "TextLimit":
        """What more than fills the context however it is tokenized; no limit where the tokenizer may shorten text."""
        per_token = model.tokenizer.max_token_bytes
        max_bytes = None if per_token is None else per_token * info.context_length
        return TextLimit(max_bytes, f"the model's context length is {info.context_length} tokens")

    def check(self, name: str, text: str) -> None:
        """Raises BadRequest (context_length_exceeded)."""
        if self.max_bytes is None or 4 * len(text) <= self.max_bytes:
            return
        num_bytes = len(text.encode(errors="surrogatepass"))
        if num_bytes > self.max_bytes:
            message = f"{name} has {num_bytes} bytes of text; the limit is {self.max_bytes}: {self.reason}."
            raise BadRequest(message, name, "context_length_exceeded")


async def tokenize_prompts(
    prompts: Sequence[Prompt], model: ServedModel, info: EngineInfo, add_special_tokens: bool
) -> list[TokenizedPrompt]:
    """Raises BadRequest for an empty prompt, for text too long for the context and for ids the model does not have."""
    names = ["prompt"] if len(prompts) == 1 else [f"prompt[{index}]" for index in range(len(prompts))]
    texts = {name: prompt for name, prompt in zip(names, prompts, strict=True) if isinstance(prompt, str)}
    if texts:
        limit = TextLimit.of_context(model, info)
        for name, text in texts.items():
            limit.check(name, text)
    encoded = iter(await tokenize(list(texts.values()), model, add_special_tokens) if texts else ())
    result = []
    for name, prompt in zip(names, prompts, strict=True):
        if isinstance(prompt, str):
            tokenized = TokenizedPrompt(next(encoded) or _beginning_of_text(model), prompt, name)
        else:
            check_token_ids(prompt, info.vocab_size, name)
            tokenized = TokenizedPrompt(prompt, None, name)
        if not tokenized.tokens:
            raise BadRequest(f"{name} is empty; it must have at least one token.", name, "invalid_value")
        result.append(tokenized)
    return result


async def tokenize(texts: Sequence[str], model: ServedModel, add_special_tokens: bool) -> list[tuple[int, ...]]:
    """Much text is tokenized in a worker thread, so that other requests' streams go on."""

    def encode() -> list[tuple[int, ...]]:
        return [tuple(model.tokenizer.encode(text, add_special_tokens)) for text in texts]

    return await run_sync(encode) if sum(map(len, texts)) > LONG_TEXT else encode()


def check_token_ids(tokens: Sequence[int], vocab_size: int, name: str) -> None:
    if tokens and max(tokens) >= vocab_size:
        index = next(index for index, token in enumerate(tokens) if token >= vocab_size)
        raise BadRequest(
            f"{name}[{index}] is {tokens[index]}; the vocabulary ends at {vocab_size - 1}.", name, "invalid_value"
        )


def fit_max_tokens(prompt: TokenizedPrompt, asked: int | None, is_chat: bool, context_length: int) -> int:
    """How many tokens may follow `prompt`. Raises BadRequest (context_length_exceeded) when what was asked cannot.

    The default shrinks to the room there is, but never to none.
    """
    room = context_length - len(prompt.tokens)
    wanted = asked
    if wanted is None:
        wanted = max(1, room if is_chat else min(DEFAULT_COMPLETION_TOKENS, room))
    if wanted > room:
        raise BadRequest(
            f"{prompt.name} has {len(prompt.tokens)} tokens and max_tokens is {wanted}, together "
            f"{len(prompt.tokens) + wanted}; the model's context length is {context_length} tokens.",
            prompt.name if room < 1 else "max_tokens",
            "context_length_exceeded",
        )
    return wanted


def _beginning_of_text(model: ServedModel) -> tuple[int, ...]:
    """An empty text is the beginning of a document, if the model has a token for that."""
    bos = model.tokenizer.bos_token_id
    return () if bos is None else (bos,)
