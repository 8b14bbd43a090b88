"""A comparison while it runs: one generation, its strategies side by side. It knows no HTTP."""

from collections.abc import Callable, Sequence
from itertools import combinations

from anyio.to_thread import run_sync
from msgspec import UNSET

from server.api.answers import CachedTokens, Usage
from server.api.compare_answers import Pair
from server.api.compare_lane import Lane, LanePlan
from server.api.engine_port import Generation
from server.api.run import drafted_tokens
from server.api.text_metrics import first_divergence, similarity
from server.errors import EngineFailed


class CompareRun:
    """Feeds the engine's outputs to the strategies, and tells the engine which of them have had enough."""

    def __init__(self, plans: Sequence[LanePlan], generation: Generation, clock: Callable[[], float]) -> None:
        """`clock` gives seconds that never go back."""
        started_at = clock()
        self.lanes = [Lane(plan, started_at) for plan in plans]
        self._generation = generation
        self._outputs = aiter(generation)
        self._clock = clock

    @property
    def is_done(self) -> bool:
        return all(lane.is_done for lane in self.lanes)

    async def step(self) -> list[Lane]:
        """Wait for the engine's next outputs; the strategies they were for.

        Raises EngineFailed when the engine cannot finish what it was given.
        """
        try:
            outputs = await anext(self._outputs)
        except StopAsyncIteration:
            raise EngineFailed("The engine ended the request before its strategies were finished.") from None
        now = self._clock()
        touched: dict[int, None] = {}
        for output in outputs:
            lane = self.lanes[output.id]
            if lane.is_done:
                continue
            lane.push(output, now)
            if lane.is_done and output.finish_reason is None:
                self._generation.stop(output.id)
            touched[output.id] = None
        return [self.lanes[index] for index in touched]

    async def pairs(self) -> list[Pair]:
        """Every two strategies that finished; off the event loop, as long texts take a while."""
        texts = {lane.plan.name: tuple(lane.plan.choice.token_ids) for lane in self.lanes if lane.error is None}

        def compare() -> list[Pair]:
            return [
                Pair((a, b), first_divergence(texts[a], texts[b]), similarity(texts[a], texts[b]))
                for a, b in combinations(texts, 2)
            ]

        return await run_sync(compare)

    def usage(self) -> Usage:
        """Tokens so far. The prompt counts once."""
        choices = [lane.plan.choice for lane in self.lanes]
        num_prompt = len(self.lanes[0].plan.sequence.prompt)
        num_output = sum(choice.num_tokens for choice in choices)
        cached = CachedTokens(choices[0].num_cached_tokens)
        tallies = [lane.plan.choice.drafting for lane in self.lanes if lane.plan.speculates]
        drafted = drafted_tokens(tallies) if tallies else UNSET
        return Usage(num_prompt, num_output, num_prompt + num_output, cached, drafted)
