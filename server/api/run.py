"""One admitted request while it is being answered: its open generation and its choices. It knows no response shape."""

from collections.abc import Callable, Coroutine, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Protocol

from msgspec import UNSET

from server.api.answers import CachedTokens, DraftedTokens, Usage
from server.api.choice import Choice
from server.api.engine_port import Generation
from server.api.parameters import InForce
from server.api.prompts import TokenizedPrompt
from server.api.speculative import DraftTally
from server.engine.types import SequenceOutput
from server.errors import EngineFailed


@dataclass(frozen=True)
class Admitted:
    """What was asked for: choice i is for prompt i // n with seeds[i]."""

    prompts: Sequence[TokenizedPrompt]
    n: int
    seeds: Sequence[int]
    tell: Callable[[], Mapping[str, InForce]]
    speculates: bool = False

    @cached_property
    def in_force(self) -> Mapping[str, InForce]:
        """Every parameter; worked out for those who ask."""
        return self.tell()

    def prompt_of(self, index: int) -> TokenizedPrompt:
        return self.prompts[index // self.n]


class Receiver(Protocol):
    """What becomes of one sequence's outputs."""

    @property
    def is_done(self) -> bool: ...

    def push(self, output: SequenceOutput) -> None: ...


class Feed:
    """Gives the engine's outputs to those they are for, and tells the engine which of them have had enough."""

    def __init__(
        self, generation: Generation, receivers: Sequence[Receiver], on_done: Callable[[], None] = lambda: None
    ) -> None:
        """Receiver i is for the sequence with the id i. `on_done` is called once, when every receiver is done."""
        self._generation = generation
        self._outputs = aiter(generation)
        self._receivers = receivers
        self._num_open = sum(not receiver.is_done for receiver in receivers)
        self._on_done = on_done

    @property
    def is_done(self) -> bool:
        return self._num_open == 0

    async def step(self) -> Iterable[int]:
        """Wait for the engine's next outputs; the indices of the receivers they were for.

        Raises EngineFailed when the engine cannot finish what it was given.
        """
        try:
            outputs = await anext(self._outputs)
        except StopAsyncIteration:
            raise EngineFailed("The engine ended the request before all of it was finished.") from None
        touched: dict[int, None] = {}
        for index, output in outputs:
            receiver = self._receivers[index]
            if receiver.is_done:
                continue
            receiver.push(output)
            touched[index] = None
            if receiver.is_done:
                self._num_open -= 1
                if output.finish_reason is None:
                    self._generation.stop(index)
        if self._num_open == 0:
            self._on_done()
        return touched


class Run:
    """A request's choices while the engine's outputs come in."""

    def __init__(
        self,
        admitted: Admitted,
        generation: Generation,
        choices: Sequence[Choice],
        on_done: Callable[[], None] = lambda: None,
    ) -> None:
        """`on_done` is called once, when every choice is finished."""
        self.admitted = admitted
        self.choices = choices
        self._feed = Feed(generation, choices, on_done)

    @property
    def is_done(self) -> bool:
        return self._feed.is_done

    def step(self) -> Coroutine[None, None, Iterable[int]]:
        """Wait for the engine's next outputs; the indices of the choices they were for. Raises EngineFailed."""
        return self._feed.step()

    def usage(self) -> Usage:
        """Tokens so far. A prompt counts once, however many choices it has."""
        num_prompt = sum(len(prompt.tokens) for prompt in self.admitted.prompts)
        tallies = [choice.drafting for choice in self.choices] if self.admitted.speculates else []
        return usage_of(num_prompt, self.choices, self.choices[:: self.admitted.n], tallies)


def usage_of(
    num_prompt: int, choices: Sequence[Choice], firsts: Sequence[Choice], tallies: Sequence[DraftTally]
) -> Usage:
    """`firsts` are those that each prompt was computed for, `tallies` of the choices that are drafted for."""
    num_output = sum(choice.num_tokens for choice in choices)
    cached = CachedTokens(sum(choice.num_cached_tokens for choice in firsts))
    drafted = drafted_tokens(tallies) if tallies else UNSET
    return Usage(num_prompt, num_output, num_prompt + num_output, cached, drafted)


def drafted_tokens(tallies: Iterable[DraftTally]) -> DraftedTokens:
    """What drafting came to over all of them, as clients are told."""
    tally = DraftTally.total(tallies)
    num_accepted = sum(tally.num_accepted)
    return DraftedTokens(
        accepted_prediction_tokens=num_accepted,
        rejected_prediction_tokens=sum(tally.num_drafted) - num_accepted,
        tokens_per_target_step=tally.tokens_per_step,
        acceptance_by_position=tally.acceptance_by_place,
    )
