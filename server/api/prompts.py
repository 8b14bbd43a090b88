"""Prompts to token ids within the model's context. It knows no sampling parameter and no response shape."""

from collections.abc import Sequence
from dataclasses import dataclass

from anyio.to_thread import run_sync

from server.api.fields import Prompt
from server.api.parameters import DEFAULT_COMPLETION_TOKENS
from server.api.served_model import ServedModel
from server.errors import BadRequest

# Characters whose tokenizing takes about as long as the event loop may be away, a few milliseconds.
LONG_TEXT = 10_000


@dataclass(frozen=True)
class TokenizedPrompt:
    tokens: tuple[int, ...]
    text: str | None  # None when the client sent token ids
    name: str  # as errors call it: "prompt", "prompt[3]", "messages"


async def tokenize_prompts(
    prompts: Sequence[Prompt], model: ServedModel, vocab_size: int, add_special_tokens: bool
) -> list[TokenizedPrompt]:
    """Raises BadRequest for an empty prompt and for token ids the model does not have."""
    texts = [prompt for prompt in prompts if isinstance(prompt, str)]
    encoded = iter(await tokenize(texts, model, add_special_tokens))
    result = []
    for index, prompt in enumerate(prompts):
        name = "prompt" if len(prompts) == 1 else f"prompt[{index}]"
        if isinstance(prompt, str):
            tokenized = TokenizedPrompt(next(encoded) or _beginning_of_text(model), prompt, name)
        else:
            check_token_ids(prompt, vocab_size, name)
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
