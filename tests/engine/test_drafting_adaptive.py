"""The method `auto` in a simulated engine, where every price and every rate of acceptance is known."""

import random
from dataclasses import dataclass, replace

import pytest
from drafting_cases import prompt

from server.engine.drafting.acceptance import Acceptance
from server.engine.drafting.adaptive import Adaptive, Plan
from server.engine.drafting.costs import CostCurve
from server.engine.params import SamplingParams
from server.engine.sequence import Sequence
from server.engine.types import DraftMethod, SequenceRequest, Speculation, StepStats

STATS = StepStats(0.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0)


@dataclass
class World:
    """A machine: a step takes fixed + per_token * tokens milliseconds, a draft pass per_pass + per_token * tokens.

    Without drafts a step has `plain_passes`, and what is fixed is spent once.
    """

    rates: dict[DraftMethod, float]  # chance that a draft is right
    fixed: float = 10.0
    per_token: float = 0.0
    per_pass: float = 1.0
    num_running: int = 1
    plain_passes: int = 1

    def step_seconds(self, num_tokens: int) -> float:
        return (self.fixed + self.per_token * num_tokens) / 1000

    def plain_seconds(self) -> float:
        return (self.fixed + self.per_token * self.num_running * self.plain_passes) / 1000


class Simulation:
    """Steps of a world with `auto` at the helm."""

    def __init__(self, world: World, methods: list[DraftMethod], num_tokens: int = 8) -> None:
        self.world = world
        self.random = random.Random(1)
        self.acceptance = Acceptance()
        self.pass_costs = CostCurve()
        self.adaptive = Adaptive(methods, {"draft": self.pass_costs}, self.acceptance)
        request = SequenceRequest(0, prompt(20, 1), SamplingParams(), speculation=Speculation("auto", num_tokens))
        self.sequences = [Sequence(replace(request, id=id_)) for id_ in range(world.num_running)]
        self.num_tokens = 0
        self.seconds = 0.0
        self.wishes: list[int] = []

    def run(self, num_steps: int) -> None:
        for _ in range(num_steps):
            self._step()

    def rate(self, num_steps: int) -> float:
        """Tokens per second over so many more steps."""
        tokens, seconds = self.num_tokens, self.seconds
        self.run(num_steps)
        return (self.num_tokens - tokens) / (self.seconds - seconds)

    def plain_rate(self) -> float:
        return self.world.num_running * self.world.plain_passes / self.world.plain_seconds()

    def _step(self) -> None:
        counts = {}
        for sequence in self.sequences:
            wish = min(self.adaptive.num_wanted(sequence), sequence.request.speculation.num_tokens)
            counts[sequence.request.id] = (wish, self.adaptive.method_for(sequence))
        self.wishes = [wish for wish, _ in counts.values()]
        draft_seconds = self._draft([wish for wish, method in counts.values() if method == "draft"])
        for id_, (wish, method) in counts.items():
            num_right = 0
            while num_right < wish and self.random.random() < self.world.rates[method]:
                num_right += 1
            if wish:
                self.acceptance.record(method, id_, min(wish, num_right + 1), num_right)
            self.num_tokens += 1 + num_right
        num_computed, num_drafts = len(self.sequences) + sum(self.wishes), sum(self.wishes)
        num_passes = 1 if num_drafts else self.world.plain_passes
        seconds = draft_seconds + (self.world.step_seconds(num_computed) if num_drafts else self.world.plain_seconds())
        self.seconds += seconds
        self.num_tokens += (num_passes - 1) * len(self.sequences)
        stats = replace(
            STATS,
            duration_seconds=seconds,
            draft_seconds=draft_seconds,
            num_draft_tokens=num_drafts,
            num_running=self.world.num_running,
            num_passes=num_passes,
        )
        self.adaptive.measured(stats, num_computed)

    def _draft(self, wishes: list[int]) -> float:
        total = 0.0
        for place in range(max(wishes, default=0)):
            num_drafting = sum(wish > place for wish in wishes)
            seconds = (self.world.per_pass + self.world.per_token * num_drafting) / 1000
            self.pass_costs.record(num_drafting, seconds)
            total += seconds
        for sequence, wish in zip(self.sequences, self.wishes, strict=True):
            if wish:
                sequence.num_draft_computed = sequence.num_tokens - 1
        return total


def settled(world: World, methods: list[DraftMethod], num_tokens: int = 8) -> Simulation:
    simulation = Simulation(world, methods, num_tokens)
    simulation.run(300)
    return simulation


def test_always_right_and_cheap_drafts_are_asked_for_in_full() -> None:
    simulation = settled(World({"draft": 1.0}, per_pass=0.1), ["draft"])
    assert simulation.wishes == [8]


def test_no_more_is_asked_for_than_the_request_allows() -> None:
    assert max(settled(World({"draft": 1.0}), ["draft"], num_tokens=3).wishes) == 3


def test_always_wrong_drafts_are_given_up() -> None:
    simulation = settled(World({"draft": 0.0}), ["draft"])
    assert simulation.wishes == [0]
    assert simulation.rate(3000) > 0.98 * simulation.plain_rate()


def test_drafts_are_given_up_under_a_load_where_every_token_costs() -> None:
    """A step of 32 sequences is bound by arithmetic: a draft costs nearly what it may save."""
    world = World({"draft": 0.6, "suffix": 0.3}, fixed=1.0, per_token=1.0, per_pass=2.0, num_running=32)
    simulation = settled(world, ["draft", "suffix"])
    assert simulation.wishes == [0] * 32
    assert simulation.rate(3000) > 0.98 * simulation.plain_rate()


def test_the_same_drafts_are_used_when_the_step_is_dominated_by_its_fixed_cost() -> None:
    simulation = settled(World({"draft": 0.6, "suffix": 0.0}, per_pass=0.5), ["draft", "suffix"])
    assert 2 <= max(simulation.wishes) <= 8
    assert simulation.rate(2000) > 1.6 * simulation.plain_rate()


def test_drafts_that_would_pay_are_given_up_where_plain_steps_have_several_passes() -> None:
    world = World({"draft": 0.7, "suffix": 0.2}, fixed=1.0, per_token=0.1, per_pass=0.2)
    assert settled(world, ["draft", "suffix"]).rate(2000) > 1.2 * settled(world, ["draft", "suffix"]).plain_rate()
    several = settled(replace(world, plain_passes=8), ["draft", "suffix"])
    assert several.rate(3000) > 0.97 * several.plain_rate()


def test_nobody_left_who_drafts_leaves_nothing_to_try() -> None:
    simulation = settled(World({"draft": 0.9}), ["draft"])
    simulation.adaptive.withdraw("draft")
    simulation.run(1000)
    assert simulation.wishes == [0]


def test_drafting_that_paid_is_given_up_once_plain_steps_have_become_cheap() -> None:
    """While everybody drafts nothing else would tell what a step without drafts costs."""
    simulation = settled(World({"draft": 0.7}, fixed=1.0, per_token=0.1, per_pass=0.2), ["draft"])
    assert max(simulation.wishes) > 1
    simulation.world = replace(simulation.world, plain_passes=8)
    simulation.run(1000)
    assert simulation.rate(3000) > 0.97 * simulation.plain_rate()


@pytest.mark.parametrize("rate", [0.3, 0.5, 0.7, 0.9])
@pytest.mark.parametrize("per_pass", [0.5, 2.0, 8.0])
@pytest.mark.parametrize(
    ("per_token", "share"), [(0.1, 0.93), (1.0, 0.9)], ids=["bound by memory", "bound by arithmetic"]
)
def test_it_does_nearly_as_well_as_the_best_fixed_number(
    rate: float, per_pass: float, per_token: float, share: float
) -> None:
    world = World({"draft": rate}, per_token=per_token, per_pass=per_pass)
    best = max(
        sum(rate**place for place in range(count + 1))
        / (world.step_seconds(1 + count) + count * (per_pass + per_token) / 1000)
        for count in range(9)
    )
    assert settled(world, ["draft"]).rate(4000) > share * best


def test_the_better_method_wins() -> None:
    world = World({"draft": 0.5, "suffix": 0.9}, per_pass=3.0)
    simulation = settled(world, ["draft", "suffix"])
    assert simulation.adaptive.method_for(simulation.sequences[0]) == "suffix"


def test_it_comes_back_when_drafts_become_right_and_goes_when_they_become_wrong() -> None:
    simulation = settled(World({"draft": 0.0}), ["draft"])
    simulation.world.rates["draft"] = 0.95
    simulation.run(20_000)
    assert simulation.wishes[0] > 0
    simulation.world.rates["draft"] = 0.0
    simulation.run(400)
    assert simulation.wishes == [0]


def test_a_sequence_whose_drafts_are_wrong_gets_none_while_its_mates_do() -> None:
    acceptance = Acceptance()
    for _ in range(50):
        acceptance.record("draft", 1, 4, 4)
        acceptance.record("draft", 2, 1, 0)
    plan = Plan("draft", 6, worth=0.3)
    assert plan.num_drafts(acceptance.rate("draft", 1)) == 6
    assert plan.num_drafts(acceptance.rate("draft", 2)) == 0


def test_a_withdrawn_method_is_never_chosen_again() -> None:
    simulation = settled(World({"draft": 1.0, "suffix": 0.0}), ["draft", "suffix"])
    simulation.adaptive.withdraw("draft")
    for _ in range(600):
        simulation.run(1)
        assert simulation.adaptive.method_for(simulation.sequences[0]) != "draft"


def test_costs_lie_between_neighbours_and_beyond_them() -> None:
    costs = CostCurve()
    assert costs.estimate(5) == 0.0
    costs.record(8, 1.0)
    costs.record(24, 3.0)
    assert [costs.estimate(count) for count in (8, 16, 24)] == pytest.approx([1.0, 2.0, 3.0])
    assert costs.estimate(48) == pytest.approx(3.3)  # a tenth of the time grows with the size
    upper = CostCurve()
    upper.record(48, 10.0)
    assert upper.estimate(24) == pytest.approx(5.5)  # and nine tenths shrink with it: both guesses invite a trial


def test_a_token_more_has_a_price_of_its_own_where_a_step_has_few() -> None:
    costs = CostCurve()
    for _ in range(20):
        for count in range(1, 9):
            costs.record(count, 1.0 + 0.2 * count)
    assert [costs.estimate(count) for count in range(1, 9)] == pytest.approx([1.0 + 0.2 * i for i in range(1, 9)])


def test_a_price_that_changed_for_good_is_learned_and_a_hiccup_is_not() -> None:
    costs = CostCurve()
    for _ in range(50):
        costs.record(8, 1.0)
    costs.record(8, 1000.0)
    assert costs.estimate(8) < 1.1
    for _ in range(200):
        costs.record(8, 2.0)
    assert costs.estimate(8) == pytest.approx(2.0, rel=0.02)


def test_an_unlucky_first_measurement_is_soon_corrected() -> None:
    costs = CostCurve()
    for _ in range(50):
        costs.record(1, 1.0)
    costs.record(5, 5.0)
    for _ in range(12):
        costs.record(5, 1.2)
    assert costs.estimate(5) == pytest.approx(1.2, rel=0.25)


def test_a_size_measured_while_the_machine_was_busy_is_compared_at_the_pace_of_now() -> None:
    costs = CostCurve()
    for pace in (1.0, 3.0):
        for _ in range(100):
            costs.record(1, pace)
            costs.record(5, 1.5 * pace)
    for _ in range(200):  # idle again, and only the larger size is in use
        costs.record(5, 1.5)
    assert costs.estimate(1) < costs.estimate(5) == pytest.approx(1.5, rel=0.01)  # and not the 3.0 last measured


def test_a_cost_not_measured_for_long_is_forgotten() -> None:
    costs = CostCurve()
    costs.record(64, 99.0)
    for _ in range(2000):
        costs.record(8, 1.0)
    assert costs.estimate(64) == pytest.approx(1.7)


def test_coverage_is_how_often_a_lookup_finds_anything() -> None:
    acceptance = Acceptance()
    assert acceptance.coverage("suffix") == 1.0
    for step in range(2000):
        acceptance.record_asked("suffix", step % 4 == 0)
    assert acceptance.coverage("suffix") == pytest.approx(0.25, abs=0.02)
