"""The shape of /v1/completions answers, with the prompt's echo. It knows no engine and no HTTP."""

from dataclasses import dataclass

from msgspec import UNSET

from server.api.answers import CompletionChoice, CompletionLogprobs
from server.api.choice import Choice, Delta, ShownToken
from server.api.detokenizer import IncrementalText
from server.api.logprobs import completion_logprobs
from server.api.prompts import TokenizedPrompt
from server.api.served_model import Tokenizer
from server.api.shapes import AnswerObject, Extras


@dataclass(frozen=True)
class Echo:
    """A prompt as answers repeat it: the client's own text if there was one, else the token ids' text."""

    text: str
    tokens: tuple[ShownToken, ...]


def make_echo(prompt: TokenizedPrompt, tokenizer: Tokenizer) -> Echo:
    """Offsets come from the tokens; where the tokenizer adds characters in front they are moved to fit the text."""
    decoder = IncrementalText()
    pieces = []
    offsets = []
    for token in prompt.tokens:
        offsets.append(decoder.length)
        pieces.append(decoder.push(tokenizer.token_bytes(token)))
    decoded = "".join(pieces) + decoder.finish()
    text = decoded if prompt.text is None else prompt.text
    shift = len(text) - len(decoded)
    shown = (
        ShownToken(token, max(0, offset + shift), None) for token, offset in zip(prompt.tokens, offsets, strict=True)
    )
    return Echo(text, tuple(shown))


@dataclass(frozen=True)
class CompletionShape:
    """`echoes` has an entry per prompt when the prompt is to be repeated, else none."""

    extras: Extras
    echoes: tuple[Echo, ...]
    num_logprobs: int | None
    whole_object: AnswerObject = "text_completion"
    chunk_object: AnswerObject = "text_completion"

    @property
    def tells_text_alone(self) -> bool:
        return self.num_logprobs is None and not self.extras.are_of_tokens

    def whole_choice(self, index: int, choice: Choice, delta: Delta) -> CompletionChoice:
        return self._choice(index, choice, delta, is_first=True)

    def chunk_choices(self, index: int, choice: Choice, delta: Delta, is_first: bool) -> list[CompletionChoice]:
        return [self._choice(index, choice, delta, is_first)]

    def _choice(self, index: int, choice: Choice, delta: Delta, is_first: bool) -> CompletionChoice:
        echo = self._echo_of(index)
        echo_text = echo.text if echo and is_first else ""
        return CompletionChoice(
            index=index,
            text=echo_text + delta.text,
            logprobs=self._logprobs(choice, delta, echo, is_first),
            finish_reason=delta.finish,
            stop_reason=delta.stop_reason if delta.finish else UNSET,
            beam_score=UNSET if delta.beam_score is None else delta.beam_score,
            seed=self.extras.admitted.seeds[index] if is_first else UNSET,
            token_ids=self.extras.token_ids(delta),
            prompt_token_ids=self.extras.prompt_token_ids(index) if is_first else UNSET,
            prompt_logprobs=self.extras.prompt_logprobs(choice) if is_first else UNSET,
            trace=self.extras.trace(delta),
        )

    def _logprobs(self, choice: Choice, delta: Delta, echo: Echo | None, is_first: bool) -> CompletionLogprobs | None:
        if self.num_logprobs is None:
            return None
        tokens = list(delta.tokens)
        if echo:
            tokens = [ShownToken(token.id, token.offset + len(echo.text), token.logprob) for token in tokens]
            if is_first:
                entries = [None, *choice.prompt_logprobs]
                tokens[:0] = [
                    ShownToken(token.id, token.offset, entry) for token, entry in zip(echo.tokens, entries, strict=True)
                ]
        return completion_logprobs(tokens, self.extras.names, self.num_logprobs)

    def _echo_of(self, index: int) -> Echo | None:
        return self.echoes[index // self.extras.admitted.n] if self.echoes else None
