"""One admitted request while it is being answered: its open generation and its choices. It knows no response shape."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass

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
    in_force: Mapping[str, InForce]
    speculates: bool = False

    def prompt_of(self, index: int) -> TokenizedPrompt:
        return self.prompts[index // self.n]


class Run:
    """Feeds the engine's outputs to the choices, and tells the engine which of them have had enough."""

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
        self._generation = generation
        self._outputs = aiter(generation)
        self._on_done = on_done

    @property
    def is_done(self) -> bool:
        return all(choice.finish for choice in self.choices)

    async def step(self) -> list[int]:
        """Wait for the engine's next outputs; the indices of the choices they were for.

        Raises EngineFailed when the engine cannot finish what it was given.
        """
        try:
            outputs = await anext(self._outputs)
        except StopAsyncIteration:
            raise EngineFailed("The engine ended the request before its choices were finished.") from None
        touched = self._absorb(outputs)
        if self.is_done:
            self._on_done()
        return touched

    def usage(self) -> Usage:
        """Tokens so far. A prompt counts once, however many choices it has."""
        num_prompt = sum(len(prompt.tokens) for prompt in self.admitted.prompts)
        num_output = sum(choice.num_tokens for choice in self.choices)
        num_cached = sum(choice.num_cached_tokens for choice in self.choices[:: self.admitted.n])
        drafted = drafted_tokens(choice.drafting for choice in self.choices) if self.admitted.speculates else UNSET
        return Usage(num_prompt, num_output, num_prompt + num_output, CachedTokens(num_cached), drafted)

    def _absorb(self, outputs: Sequence[SequenceOutput]) -> list[int]:
        touched: dict[int, None] = {}
        for output in outputs:
            choice = self.choices[output.id]
            if choice.finish:
                continue
            choice.push(output)
            if choice.finish and output.finish_reason is None:
                self._generation.stop(output.id)
            touched[output.id] = None
        return list(touched)


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
