"""The shape of /v1/chat/completions answers, whole and streamed. It knows no engine and no HTTP."""

from dataclasses import dataclass

from msgspec import UNSET

from server.api.answers import ChatChoice, ChatChunkChoice, ChatDelta, ChatLogprobs, ChatMessage
from server.api.choice import Choice, Delta
from server.api.logprobs import chat_logprobs
from server.api.shapes import AnswerObject, Extras


@dataclass(frozen=True)
class ChatShape:
    """Streams begin each choice with a delta that holds its role, then only content."""

    extras: Extras
    num_logprobs: int | None
    whole_object: AnswerObject = "chat.completion"
    chunk_object: AnswerObject = "chat.completion.chunk"

    @property
    def tells_text_alone(self) -> bool:
        return self.num_logprobs is None and not self.extras.are_of_tokens

    def whole_choice(self, index: int, choice: Choice, delta: Delta) -> ChatChoice:
        return ChatChoice(
            index=index,
            message=ChatMessage("assistant", delta.text),
            logprobs=self._logprobs(delta),
            finish_reason=delta.finish,
            stop_reason=delta.stop_reason if delta.finish else UNSET,
            beam_score=UNSET if delta.beam_score is None else delta.beam_score,
            seed=self.extras.admitted.seeds[index],
            token_ids=self.extras.token_ids(delta),
            trace=self.extras.trace(delta),
            prompt_token_ids=self.extras.prompt_token_ids(index),
            prompt_logprobs=self.extras.prompt_logprobs(choice),
        )

    def chunk_choices(self, index: int, choice: Choice, delta: Delta, is_first: bool) -> list[ChatChunkChoice]:
        content = ChatChunkChoice(
            index=index,
            delta=ChatDelta(content=delta.text) if delta.text or not delta.finish else ChatDelta(),
            logprobs=self._logprobs(delta) if delta.tokens else None,
            finish_reason=delta.finish,
            stop_reason=delta.stop_reason if delta.finish else UNSET,
            beam_score=UNSET if delta.beam_score is None else delta.beam_score,
            token_ids=self.extras.token_ids(delta),
            trace=self.extras.trace(delta),
        )
        return [self._opening(index, choice), content] if is_first else [content]

    def _opening(self, index: int, choice: Choice) -> ChatChunkChoice:
        return ChatChunkChoice(
            index=index,
            delta=ChatDelta(role="assistant", content=""),
            logprobs=None,
            finish_reason=None,
            seed=self.extras.admitted.seeds[index],
            prompt_token_ids=self.extras.prompt_token_ids(index),
            prompt_logprobs=self.extras.prompt_logprobs(choice),
        )

    def _logprobs(self, delta: Delta) -> ChatLogprobs | None:
        return None if self.num_logprobs is None else chat_logprobs(delta.tokens, self.extras.names, self.num_logprobs)
