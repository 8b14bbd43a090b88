"""The response bodies, field by field, in OpenAI's order; extensions follow. Knows no engine and no HTTP.

UNSET fields are left out of the JSON, None fields are null.
"""

from collections.abc import Sequence
from typing import Literal

from msgspec import UNSET, Struct, UnsetType

from server.api.shape_trace_answers import TraceEntry

Finish = Literal["stop", "length"] | None
StopReason = int | str | UnsetType | None  # the stop token or stop string; sent with the finish reason


class CachedTokens(Struct):
    cached_tokens: int


class DraftedTokens(Struct):
    """OpenAI's names for drafts, and how much they saved. The last is by the draft's place, the next token's first."""

    accepted_prediction_tokens: int
    rejected_prediction_tokens: int
    tokens_per_target_step: float
    acceptance_by_position: list[float]


class Usage(Struct):
    prompt_tokens: int
    completion_tokens: int
    total_tokens: int
    prompt_tokens_details: CachedTokens
    completion_tokens_details: DraftedTokens | UnsetType = UNSET


class Parameter(Struct):
    """A parameter in force: its value, and whether request, preset, model, server or chance chose it."""

    value: object
    source: str


class PromptLogprob(Struct):
    logprob: float
    rank: int | None
    decoded_token: str


PromptLogprobs = list[dict[str, PromptLogprob] | None]


class CompletionLogprobs(Struct):
    tokens: list[str]
    token_logprobs: list[float | None]
    top_logprobs: list[dict[str, float] | None]
    text_offset: list[int]


class TopLogprob(Struct):
    token: str
    logprob: float
    bytes: list[int]


class ChatTokenLogprob(Struct):
    token: str
    logprob: float
    bytes: list[int]
    top_logprobs: list[TopLogprob]


class ChatLogprobs(Struct):
    content: list[ChatTokenLogprob]
    refusal: None = None


class CompletionChoice(Struct):
    index: int
    text: str
    logprobs: CompletionLogprobs | None
    finish_reason: Finish
    stop_reason: StopReason = UNSET
    beam_score: float | UnsetType = UNSET
    seed: int | UnsetType = UNSET
    token_ids: list[int] | UnsetType = UNSET
    prompt_token_ids: tuple[int, ...] | UnsetType = UNSET
    prompt_logprobs: PromptLogprobs | UnsetType = UNSET
    trace: list[TraceEntry] | UnsetType = UNSET


class ChatMessage(Struct):
    role: Literal["assistant"]
    content: str
    refusal: None = None


class ChatChoice(Struct):
    index: int
    message: ChatMessage
    logprobs: ChatLogprobs | None
    finish_reason: Finish
    stop_reason: StopReason = UNSET
    beam_score: float | UnsetType = UNSET
    seed: int | UnsetType = UNSET
    token_ids: list[int] | UnsetType = UNSET
    prompt_token_ids: tuple[int, ...] | UnsetType = UNSET
    prompt_logprobs: PromptLogprobs | UnsetType = UNSET
    trace: list[TraceEntry] | UnsetType = UNSET


class ChatDelta(Struct):
    role: Literal["assistant"] | UnsetType = UNSET
    content: str | UnsetType = UNSET


class ChatChunkChoice(Struct):
    index: int
    delta: ChatDelta
    logprobs: ChatLogprobs | None
    finish_reason: Finish
    stop_reason: StopReason = UNSET
    beam_score: float | UnsetType = UNSET
    seed: int | UnsetType = UNSET
    token_ids: list[int] | UnsetType = UNSET
    prompt_token_ids: tuple[int, ...] | UnsetType = UNSET
    prompt_logprobs: PromptLogprobs | UnsetType = UNSET
    trace: list[TraceEntry] | UnsetType = UNSET


Choices = Sequence[CompletionChoice | ChatChoice | ChatChunkChoice]


class Answer(Struct):
    """The whole of a response, or one event of a stream."""

    id: str
    object: Literal["text_completion", "chat.completion", "chat.completion.chunk"]
    created: int
    model: str
    choices: Choices
    usage: Usage | UnsetType | None
    system_fingerprint: str
    resolved_parameters: dict[str, Parameter] | UnsetType = UNSET
