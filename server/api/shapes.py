"""What completions and chat answers have in common, and the seam between them. It knows no engine and no HTTP."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal, Protocol

from msgspec import UNSET, UnsetType

from server.api.answers import (
    Answer,
    ChatChoice,
    ChatChunkChoice,
    CompletionChoice,
    Parameter,
    PromptLogprobs,
    Usage,
)
from server.api.choice import Choice, Delta
from server.api.logprobs import TokenNames, prompt_logprobs
from server.api.parameters import InForce
from server.api.run import Admitted
from server.api.schemas import GenerationRequest
from server.api.shape_trace import trace_entries
from server.api.shape_trace_answers import TraceEntry

AnswerObject = Literal["text_completion", "chat.completion", "chat.completion.chunk"]


class Shape(Protocol):
    """How choices look in one kind of answer."""

    @property
    def whole_object(self) -> AnswerObject: ...

    @property
    def chunk_object(self) -> AnswerObject: ...

    @property
    def tells_text_alone(self) -> bool:
        """Whether a choice's events between its first and its last differ in nothing but their text."""
        ...

    def whole_choice(self, index: int, choice: Choice, delta: Delta) -> CompletionChoice | ChatChoice:
        """A finished choice; `delta` is all of it."""
        ...

    def chunk_choices(
        self, index: int, choice: Choice, delta: Delta, is_first: bool
    ) -> Sequence[CompletionChoice | ChatChunkChoice]:
        """The events that tell of `delta`, in order."""
        ...


@dataclass(frozen=True)
class Envelope:
    """What is the same in every part of one answer."""

    id: str
    created: int
    model: str
    system_fingerprint: str
    parameters: Mapping[str, InForce] | None  # None unless asked for

    def wrap(
        self,
        kind: AnswerObject,
        choices: Sequence[CompletionChoice | ChatChoice | ChatChunkChoice],
        usage: Usage | UnsetType | None,
        is_first: bool,
    ) -> Answer:
        parameters: dict[str, Parameter] | UnsetType = UNSET
        if is_first and self.parameters is not None:
            parameters = {name: Parameter(item.value, item.source) for name, item in self.parameters.items()}
        return Answer(self.id, kind, self.created, self.model, choices, usage, self.system_fingerprint, parameters)


@dataclass(frozen=True)
class Extras:
    """Which extension fields a request asked for, and their values."""

    admitted: Admitted
    names: TokenNames
    return_token_ids: bool
    return_prompt_logprobs: bool
    has_traces: bool

    @classmethod
    def of(cls, asked: GenerationRequest, admitted: Admitted, names: TokenNames) -> "Extras":
        return cls(
            admitted, names, bool(asked.return_token_ids), asked.prompt_logprobs is not None, asked.trace is not None
        )

    @property
    def are_of_tokens(self) -> bool:
        """Whether every token has some."""
        return self.return_token_ids or self.has_traces

    def token_ids(self, delta: Delta) -> list[int] | UnsetType:
        return [token.id for token in delta.tokens] if self.return_token_ids else UNSET

    def prompt_token_ids(self, index: int) -> tuple[int, ...] | UnsetType:
        return self.admitted.prompt_of(index).tokens if self.return_token_ids else UNSET

    def trace(self, delta: Delta) -> list[TraceEntry] | UnsetType:
        return trace_entries(delta.tokens, self.names)

    def prompt_logprobs(self, choice: Choice) -> PromptLogprobs | UnsetType:
        return prompt_logprobs(choice.prompt_logprobs, self.names) if self.return_prompt_logprobs else UNSET
