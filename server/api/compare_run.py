"""A comparison while it runs: one generation, its strategies side by side. It knows no HTTP."""

from collections.abc import Callable, Sequence
from itertools import combinations

from anyio.to_thread import run_sync

from server.api.answers import Usage
from server.api.compare_answers import Pair
from server.api.compare_lane import Lane, LanePlan
from server.api.engine_port import Generation
from server.api.run import Feed, usage_of
from server.api.text_metrics import first_divergence, similarity


class CompareRun:
    """The strategies of a comparison while the engine's outputs come in."""

    def __init__(self, plans: Sequence[LanePlan], generation: Generation, clock: Callable[[], float]) -> None:
        """`clock` gives seconds that never go back."""
        self.lanes = [Lane(plan, clock) for plan in plans]
        self._feed = Feed(generation, self.lanes)

    @property
    def is_done(self) -> bool:
        return self._feed.is_done

    async def step(self) -> list[Lane]:
        """Wait for the engine's next outputs; the strategies they were for. Raises EngineFailed."""
        return [self.lanes[index] for index in await self._feed.step()]

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
        tallies = [lane.plan.choice.drafting for lane in self.lanes if lane.plan.speculates]
        return usage_of(num_prompt, choices, choices[:1], tallies)
