"""Log-probabilities in the three shapes clients expect. It knows tokens and text, no choice and no stream."""

from collections.abc import Sequence
from dataclasses import dataclass

from server.api.answers import (
    ChatLogprobs,
    ChatTokenLogprob,
    CompletionLogprobs,
    PromptLogprob,
    PromptLogprobs,
    TopLogprob,
)
from server.api.choice import ShownToken
from server.api.served_model import Tokenizer
from server.engine.types import TokenLogprob

# JSON has no infinity. The field's servers send this for a token that cannot be chosen.
LOWEST_LOGPROB = -9999.0


@dataclass(frozen=True)
class TokenNames:
    """How tokens are written where JSON wants a string."""

    tokenizer: Tokenizer
    as_ids: bool  # "token_id:123" for every token

    def name(self, token: int) -> str:
        """The token's text; its id where it has none, its bytes where they are not text by themselves.

        Distinct tokens thus rarely share a name, which matters where names are keys.
        """
        data = b"" if self.as_ids else self.tokenizer.token_bytes(token)
        if not data:
            return f"token_id:{token}"
        try:
            return data.decode("utf-8")
        except UnicodeDecodeError:
            return "bytes:" + "".join(f"\\x{byte:02x}" for byte in data)


def completion_logprobs(tokens: Sequence[ShownToken], names: TokenNames, num_top: int) -> CompletionLogprobs:
    """The shape of /v1/completions. A token without a logprob (a prompt's first) has null."""
    return CompletionLogprobs(
        tokens=[names.name(token.id) for token in tokens],
        token_logprobs=[None if token.logprob is None else finite(token.logprob.logprob) for token in tokens],
        top_logprobs=[
            None if token.logprob is None else _top_by_name(token.logprob, names, num_top) for token in tokens
        ],
        text_offset=[token.offset for token in tokens],
    )


def chat_logprobs(tokens: Sequence[ShownToken], names: TokenNames, num_top: int) -> ChatLogprobs:
    """The shape of /v1/chat/completions."""
    return ChatLogprobs([_chat_token(token.logprob, names, num_top) for token in tokens if token.logprob is not None])


def prompt_logprobs(entries: Sequence[TokenLogprob], names: TokenNames) -> PromptLogprobs:
    """Per prompt position the candidates by token id; null for the first, which nothing predicts."""
    shaped: PromptLogprobs = [None]
    for entry in entries:
        candidates = {
            str(token): PromptLogprob(finite(logprob), rank, names.name(token))
            for rank, (token, logprob) in enumerate(zip(entry.top_tokens, entry.top_logprobs, strict=True), start=1)
        }
        candidates.setdefault(
            str(entry.token), PromptLogprob(finite(entry.logprob), entry.rank, names.name(entry.token))
        )
        shaped.append(candidates)
    return shaped


def finite(logprob: float) -> float:
    return max(logprob, LOWEST_LOGPROB)


def _top_by_name(entry: TokenLogprob, names: TokenNames, num_top: int) -> dict[str, float]:
    """The likeliest tokens and the chosen one, as OpenAI: up to num_top + 1 entries."""
    top: dict[str, float] = {}
    for token, logprob in zip(entry.top_tokens[:num_top], entry.top_logprobs[:num_top], strict=True):
        name = names.name(token)
        top[f"token_id:{token}" if name in top else name] = finite(logprob)
    if entry.token not in entry.top_tokens[:num_top]:
        name = names.name(entry.token)
        top[f"token_id:{entry.token}" if name in top else name] = finite(entry.logprob)
    return top


def _chat_token(entry: TokenLogprob, names: TokenNames, num_top: int) -> ChatTokenLogprob:
    top = [
        TopLogprob(names.name(token), finite(logprob), list(names.tokenizer.token_bytes(token)))
        for token, logprob in zip(entry.top_tokens[:num_top], entry.top_logprobs[:num_top], strict=True)
    ]
    data = list(names.tokenizer.token_bytes(entry.token))
    return ChatTokenLogprob(names.name(entry.token), finite(entry.logprob), data, top)
