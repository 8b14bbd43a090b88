"""One strategy of a comparison while it runs: what it gained, when, and whether it failed. It knows no HTTP."""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass

from msgspec import UNSET, UnsetType, structs

from server.api.answers import DraftedTokens, Parameter
from server.api.choice import Choice, Delta
from server.api.compare_answers import StrategyAnswer, StrategyMetrics
from server.api.compare_request import naming_strategy
from server.api.errors import ErrorBody, to_api_error
from server.api.logprobs import finite
from server.api.parameters import InForce
from server.api.run import drafted_tokens
from server.api.shape_completion import CompletionShape
from server.api.text_metrics import distinct, mean, perplexity, repetition_rate
from server.engine.types import SequenceOutput, SequenceRequest
from server.errors import ServerError


@dataclass(frozen=True)
class LanePlan:
    """A strategy as the request it would be by itself."""

    name: str
    own: frozenset[str] | None  # the parameters it set, to name it in errors; None where only seeds differ
    sequence: SequenceRequest  # its id is the strategy's place
    choice: Choice
    shape: CompletionShape  # of a request with this choice alone
    in_force: Mapping[str, InForce]
    speculates: bool


class Lane:
    """A strategy from the request to its last token."""

    def __init__(self, plan: LanePlan, clock: Callable[[], float]) -> None:
        """`clock` gives seconds that never go back."""
        self.plan = plan
        self.error: ErrorBody | None = None
        self._clock = clock
        self._started_at = self._last_at = clock()
        self._first_at: float | None = None
        self._is_begun = False
        self._is_told = False
        self._logprobs: list[float] = []
        self._entropies: list[float] = []

    @property
    def is_done(self) -> bool:
        return self.error is not None or self.plan.choice.is_done

    def push(self, output: SequenceOutput) -> None:
        """Take in one engine output. A failure is this strategy's alone."""
        if output.tokens:
            self._last_at = self._clock()
            self._first_at = self._last_at if self._first_at is None else self._first_at
        try:
            with naming_strategy(self.plan.sequence.id, self.plan.own):
                self.plan.choice.push(output)
        except ServerError as error:
            self.error = to_api_error(error).body

    def take(self) -> StrategyAnswer | None:
        """What is new since the last call, the measures with the last of it; None when there is nothing to tell."""
        delta = self.plan.choice.take()
        if self._is_told or not (delta or self.is_done):
            return None
        self._note(delta)
        is_first, self._is_begun, self._is_told = not self._is_begun, True, self.is_done
        (chunk,) = self.plan.shape.chunk_choices(0, self.plan.choice, delta, is_first)
        answer = StrategyAnswer(name=self.plan.name, **structs.asdict(chunk))
        answer.index = self.plan.sequence.id
        answer.prompt_token_ids = UNSET  # the same for all
        if is_first:
            told = self.plan.in_force.items()
            answer.resolved_parameters = {name: Parameter(item.value, item.source) for name, item in told}
        if self.is_done:
            answer.error = UNSET if self.error is None else self.error
            answer.metrics, answer.drafts = self._metrics(), self._drafts()
        return answer

    def _note(self, delta: Delta) -> None:
        entries = [token.logprob for token in delta.tokens if token.logprob is not None]
        self._logprobs += [finite(entry.logprob) for entry in entries]
        self._entropies += [entry.entropy for entry in entries]

    def _metrics(self) -> StrategyMetrics:
        tokens = self.plan.choice.token_ids
        mean_logprob = mean(self._logprobs)
        seconds = self._last_at - self._started_at
        return StrategyMetrics(
            num_tokens=len(tokens),
            total_logprob=math.fsum(self._logprobs),
            mean_logprob=mean_logprob,
            perplexity=None if mean_logprob is None else perplexity(mean_logprob),
            mean_entropy=mean(self._entropies),
            distinct_1=distinct(tokens, 1),
            distinct_2=distinct(tokens, 2),
            repetition_rate=repetition_rate(tokens),
            time_to_first_token_seconds=None if self._first_at is None else self._first_at - self._started_at,
            tokens_per_second=self.plan.choice.num_tokens / seconds if seconds > 0 else None,
        )

    def _drafts(self) -> DraftedTokens | UnsetType:
        return drafted_tokens([self.plan.choice.drafting]) if self.plan.speculates else UNSET
