"""Everything the choice of a sequence's next tokens depends on besides logits, and what ends it. Knows no batch."""

from dataclasses import dataclass, field, replace
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from server.engine.admission import ending_tokens
from server.engine.grammar_spec import GrammarError
from server.engine.sampler import DecodingState, Row
from server.engine.sequence import Sequence
from server.engine.tracing_types import TokenTrace
from server.engine.types import EngineInfo, FinishReason, SequenceRequest


class Matcher(Protocol):
    """Where a sequence stands in its grammar."""

    def mask(self) -> NDArray[np.int32]:
        """Tokens that may follow, [vocab / 32, rounded up] with a bit each. Raises GrammarError at its limits."""
        ...

    def accept(self, token: int) -> None:
        """The token has been chosen. Raises GrammarError at its limits."""
        ...

    def is_finished(self) -> bool:
        """Whether nothing may follow but the end. Raises GrammarError at its limits."""
        ...

    def scout(self) -> "Matcher":
        """One at the same place to rehearse tokens with, of which there is one. Raises GrammarError at its limits."""
        ...


@dataclass
class Decoding:
    """One sequence being decoded."""

    sequence: Sequence
    endings: frozenset[int]  # tokens that end it when chosen
    state: DecodingState | None  # its history, where a stage of the sampler asks for one
    ignored: tuple[int, ...] = ()  # ending tokens that would be text, where a grammar knows them as the end only
    matcher: Matcher | None = None  # set once its grammar is compiled
    is_plain: bool = False  # every token is chosen by itself, and nothing but the token is told

    @classmethod
    def of(cls, request: SequenceRequest, info: EngineInfo) -> "Decoding":
        return cls(
            Sequence(request),
            frozenset(ending_tokens(info, request)),
            DecodingState.of(request.params, request.prompt, info.vocab_size, request.num_forked),
            info.eos_token_ids if request.grammar is not None and request.params.ignore_eos else (),
            is_plain=_is_plain(request),
        )

    def rehearsal(self) -> "Decoding":
        """The same sequence with a history of its own, to choose tokens that may not become the sequence's.

        Raises GrammarError where its grammar does not look ahead.
        """
        state = None if self.state is None else self.state.fork()
        matcher = None if self.matcher is None else self.matcher.scout()
        return replace(self, state=state, matcher=matcher)

    def append(self, token: int) -> None:
        """Take a token that was not chosen by `choose`, which records its own."""
        self.sequence.tokens.append(token)
        if self.state is not None:
            self.state.append(token)

    def branch(self, request: SequenceRequest) -> "Decoding":
        """Another sequence with the same tokens and history, of one that has no grammar."""
        assert self.matcher is None
        state = None if self.state is None else self.state.fork()
        return replace(self, sequence=self.sequence.fork(request), state=state)

    @property
    def is_stateless(self) -> bool:
        """Whether a token depends on the ones before it through nothing but the logits."""
        return self.state is None and self.matcher is None

    def row(self, ahead: int) -> Row:
        """What chooses the token `ahead` places behind the next one. Raises GrammarError."""
        sequence, params = self.sequence, self.sequence.request.params
        position = len(sequence.tokens) + ahead
        is_early = position - sequence.num_prompt < params.min_tokens
        withheld = (*self.ignored, *sorted(self.endings)) if is_early else self.ignored
        mask = None if self.matcher is None else self.matcher.mask()
        return Row(params, position, withheld, self.state, mask)


@dataclass(slots=True)
class Verification:
    """A sequence's turn to choose: behind its latest token, and behind each draft for as long as they prove right."""

    decoding: Decoding
    first_row: int  # of the step's logits: those behind the latest token; the drafts' follow
    drafts: tuple[int, ...] = ()
    tokens: list[int] = field(default_factory=list)
    num_accepted: int = 0
    finish_reason: FinishReason | None = None
    stop_token: int | None = None
    error: str = ""
    traces: tuple[TokenTrace, ...] = ()  # of `tokens`, where asked for

    def ready_rows(self) -> list[Row]:
        """The next rows, as many as can be decided at once: with a history one, as more depends on what is chosen.

        Empty when the grammar gives up, which ends the sequence.
        """
        count = len(self.drafts) + 1 - len(self.tokens) if self.decoding.is_stateless else 1
        try:
            return list(map(self.decoding.row, range(count)))
        except GrammarError as error:
            self.finish_reason, self.error = "error", str(error)
            return []

    def keep(self, chosen: list[int]) -> bool:
        """Take the tokens chosen at the next rows, as far as the drafts in between agree; whether there are more."""
        for token in chosen:
            place = len(self.tokens)
            agrees = place < len(self.drafts) and token == self.drafts[place]
            self.num_accepted += agrees
            self._append(token)
            if self.finish_reason is not None or not agrees:
                return False
        return self.finish_reason is None

    def _append(self, token: int) -> None:
        sequence = self.decoding.sequence
        sequence.tokens.append(token)
        self.tokens.append(token)
        if token in self.decoding.endings:
            self.finish_reason, self.stop_token = "stop", token
        elif self.decoding.matcher is not None and self._completes(self.decoding.matcher, token):
            self.finish_reason = "stop"
        elif not sequence.num_remaining and self.finish_reason is None:
            self.finish_reason = "length"

    def _completes(self, matcher: Matcher, token: int) -> bool:
        """Whether the token is the last that the grammar allows."""
        try:
            matcher.accept(token)
            return matcher.is_finished()
        except GrammarError as error:
            self.finish_reason, self.error = "error", str(error)
            return False


def _is_plain(request: SequenceRequest) -> bool:
    params = request.params
    told = (request.trace, params.logprobs, params.prompt_logprobs)
    shaped = (request.grammar, request.guidance, request.beams)
    return params.max_tokens > 0 and all(one is None for one in (*told, *shaped))
