"""One choice of an answer: engine outputs in, text and tokens out. It knows no HTTP and no response shape.

Text and tokens do not depend on how the engine grouped tokens into steps, nor on when they are taken.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import msgspec

from server.api.detokenizer import IncrementalText
from server.api.served_model import Tokenizer
from server.api.speculative import DraftTally
from server.api.stop_strings import StopScanner, StopStrings
from server.engine.tracing_types import TokenTrace
from server.engine.types import SequenceOutput, TokenLogprob
from server.errors import EngineFailed, ServerError

Finish = Literal["stop", "length"]


class ShownToken(msgspec.Struct, frozen=True):
    """A token of the answer. `offset` is where in the choice's text its first byte's character stands."""

    id: int
    offset: int
    logprob: TokenLogprob | None
    trace: TokenTrace | None = None


class Delta(msgspec.Struct, frozen=True):
    """What a choice gained since it was last asked. `finish` and `stop_reason` come with the last one only."""

    text: str
    tokens: tuple[ShownToken, ...]
    finish: Finish | None
    stop_reason: int | str | None  # the stop token or stop string that ended it, with `finish` only
    beam_score: float | None = None  # of a finished hypothesis, unless a stop string cut it

    def __bool__(self) -> bool:
        return bool(self.text or self.tokens or self.finish)


@dataclass(frozen=True)
class ChoiceOptions:
    """What all choices of a request share."""

    stops: StopStrings
    include_stop: bool = False  # stop strings and stop tokens stay in the text
    min_tokens: int = 0  # stop strings completed before this many tokens exist are text
    blame_grammar: Callable[[str], ServerError] = EngineFailed  # what the engine says of the request's grammar


class Choice:
    """Accumulates one sequence's outputs until it is finished; `take` hands over what may be shown."""

    def __init__(self, tokenizer: Tokenizer, options: ChoiceOptions) -> None:
        self._tokenizer = tokenizer
        self._options = options
        self._text = IncrementalText()
        self._never_holds = not options.stops
        self._scanner = StopScanner(options.stops, options.include_stop)
        self._waiting_tokens: list[ShownToken] = []
        self._ready_tokens: list[ShownToken] = []
        self._ready_text: list[str] = []
        self._stop_reason: int | str | None = None
        self._beam_score: float | None = None
        # Tokens already shown, one a pass, by whoever asked whether it `shows_at_once`, and not yet accounted for.
        self.told: list[int] = []
        self.prompt_logprobs: list[TokenLogprob] = []
        self.token_ids: list[int] = []  # of the answer: those already taken, and those ready to be
        self.num_tokens = 0  # generated, shown or not, up to and including the one that ended the choice
        self.num_cached_tokens = 0
        self.drafting = DraftTally()
        self.finish: Finish | None = None

    @property
    def is_done(self) -> bool:
        return self.finish is not None

    def push(self, output: SequenceOutput) -> None:
        """Take in one engine output. Raises EngineFailed when it reports that the sequence could not go on."""
        if self.finish:
            return
        if self.told:
            self._account_for_told()
        if output.prompt_logprobs:
            self.prompt_logprobs += output.prompt_logprobs
        if output.num_cached_tokens > self.num_cached_tokens:
            self.num_cached_tokens = output.num_cached_tokens
        num_before = self.num_tokens
        self._push_tokens(output)
        self.drafting.add(output, self.num_tokens - num_before)
        if self.finish or output.finish_reason is None:
            return
        if output.finish_reason == "error":
            if output.blames_grammar:
                raise self._options.blame_grammar(output.error)
            raise EngineFailed(output.error or "The engine could not take the sequence.")
        if output.finish_reason == "abort":
            raise EngineFailed("The server gave the request up before it was finished.")
        self._end(output.finish_reason, output)

    @property
    def shows_at_once(self) -> bool:
        """Whether a token of whole characters would add just these to what is shown, and nothing else would change."""
        return self._never_holds and self._text.is_whole and not self.finish

    def take(self) -> Delta:
        """What became ready since the last call; falsy when nothing did."""
        text, self._ready_text = "".join(self._ready_text), []
        tokens, self._ready_tokens = tuple(self._ready_tokens), []
        return Delta(text, tokens, self.finish, self._stop_reason, self._beam_score)

    def _account_for_told(self) -> None:
        self._text.push(b"".join(map(self._tokenizer.token_bytes, self.told)))
        self.token_ids += self.told
        self.num_tokens += len(self.told)
        self.drafting.add_plain(len(self.told))
        self.told.clear()

    def _push_tokens(self, output: SequenceOutput) -> None:
        """Take in the tokens up to the one that completes a stop string."""
        for index, token in enumerate(output.tokens):
            self.num_tokens += 1
            if output.stop_token is not None and index == len(output.tokens) - 1 and not self._options.include_stop:
                return
            logprob = output.logprobs[index] if output.logprobs else None
            trace = output.traces[index] if output.traces else None
            shown = ShownToken(token, self._text.length, logprob, trace)
            text = self._text.push(self._tokenizer.token_bytes(token))
            if self._never_holds:
                self._ready_text.append(text)
                self._ready_tokens.append(shown)
                self.token_ids.append(token)
                continue
            self._waiting_tokens.append(shown)
            self._push_text(text)
            if self.finish:
                return

    def _push_text(self, text: str) -> None:
        armed = self.num_tokens >= self._options.min_tokens
        self._ready_text.append(self._scanner.push(text, armed))
        if self._scanner.stopped_by is not None:
            self.finish, self._stop_reason = "stop", self._scanner.stopped_by
        self._release_tokens()

    def _release_tokens(self) -> None:
        """A token whose text begins where text may still be cut away waits."""
        released = self._scanner.num_released
        num_ready = sum(token.offset < released for token in self._waiting_tokens)  # offsets never decrease
        self._show(self._waiting_tokens[:num_ready])
        self._waiting_tokens = self._waiting_tokens[num_ready:] if not self.finish else []

    def _show(self, tokens: list[ShownToken]) -> None:
        self._ready_tokens += tokens
        self.token_ids += [token.id for token in tokens]

    def _end(self, finish: Finish, last: SequenceOutput) -> None:
        self._push_text(self._text.finish())
        if self.finish:  # the replacement character of an unfinished one completed a stop string
            return
        self._ready_text.append(self._scanner.finish())
        self._show(self._waiting_tokens)
        self._waiting_tokens = []
        self.finish, self._stop_reason, self._beam_score = finish, last.stop_token, last.beam_score
