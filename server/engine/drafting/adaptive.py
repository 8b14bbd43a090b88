"""The method `auto`: which drafter, and how many drafts, give the most tokens per second. Knows no drafter's insides.

A step with drafts costs what the target takes for its tokens plus the passes of the draft model; it gives each sequence
a token and the drafts that prove right. Both sides are measured, and the best number of drafts may be none.
"""

import math
from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass

from server.engine.drafting.acceptance import Acceptance
from server.engine.drafting.costs import CostCurve
from server.engine.sequence import Sequence as EngineSequence
from server.engine.types import MAX_DRAFT_TOKENS, DraftMethod, StepStats

# Planning anew at every step would cost a percent itself; while nobody drafts there is less to learn.
_STEPS_PER_PLAN, _STEPS_PER_PLAN_OFF = 8, 32
# Drafting must promise so much more than not drafting: the estimates are no better.
_WORTHWHILE = 1.05
# While a method is out of use, one sequence tries it for a few steps, once in a while.
_STEPS_BETWEEN_PROBES, _STEPS_PER_PROBE, _PROBE_TOKENS = 256, 4, 2
# Catching up with what the draft model has missed is counted as spread over so many steps.
_CATCH_UP_STEPS = 64


@dataclass(frozen=True)
class Plan:
    """How the next steps draft. `worth` is the probability from which on a draft pays for itself."""

    method: DraftMethod = "off"
    num_tokens: int = 0
    worth: float = 0.0
    tokens_per_second: float = 0.0

    def num_drafts(self, rate: float) -> int:
        """How many drafts pay for a sequence whose drafts are right at this rate: rate**k >= worth."""
        if self.worth <= 0.0:
            return self.num_tokens
        if self.worth >= 1.0:
            return 0
        return min(self.num_tokens, int(math.log(self.worth) / math.log(rate) + 1e-9))


# How many sequences have which chance that a draft of theirs is right, and allow how many drafts.
Rates = Mapping[tuple[float, int], int]


class Load:
    """What there is to plan for, looked at once for all plans. `plain` is the tokens per second without drafts."""

    def __init__(self, num_running: int, plain: float, wishing: Collection[EngineSequence]) -> None:
        self.num_running = num_running
        self.plain = plain
        self._most = {one.request.id: min(one.request.speculation.num_tokens, MAX_DRAFT_TOKENS) for one in wishing}
        self.most_drafts = max(self._most.values(), default=0)

    def rates(self, method: DraftMethod, acceptance: Acceptance) -> Rates:
        """Of all who wish, to the hundredth: sequences that are nearly alike are planned for together."""
        return Counter((round(acceptance.rate(method, id_), 2), most) for id_, most in self._most.items())


class Adaptive:
    """Decides for all sequences that leave it to the server. `methods` are tried in this order, best guess first.

    `pass_costs` are those of the methods that run a model. Decisions depend on time; tokens never do.
    """

    def __init__(
        self, methods: Sequence[DraftMethod], pass_costs: Mapping[DraftMethod, CostCurve], acceptance: Acceptance
    ) -> None:
        self._methods = list(methods)
        self._pass_costs = pass_costs
        self._acceptance = acceptance
        # Of a step with drafts, and of a token of a step without any, which small models compute several of in a row.
        self._target_costs, self._plain_costs = CostCurve(), CostCurve()
        self._lookup_costs = {method: CostCurve() for method in methods if method not in pass_costs}
        self._plan = Plan(self._methods[0], _PROBE_TOKENS)  # nothing is measured yet: find out
        self._is_planning = True  # after this step: who wishes is written down only then
        self._wishing: dict[int, EngineSequence] = {}
        self._num_wishing = 0  # in this step
        self._num_steps = 0
        self._planned_for = 0  # sequences running
        self._probe: tuple[int, DraftMethod] | None = None
        self._is_resting = False  # nobody drafts for a few steps, to see what that costs

    def withdraw(self, method: DraftMethod) -> None:
        """The method has failed for good."""
        self._methods.remove(method)
        self._plan, self._probe, self._is_planning = Plan(), None, True

    def num_wanted(self, sequence: EngineSequence) -> int:
        """Drafts for the sequence in the coming step, at most as many as its request allows."""
        id_ = sequence.request.id
        self._num_wishing += 1
        if self._is_planning:
            self._wishing[id_] = sequence
        if self._is_resting:
            return 0
        if self._probe is not None and self._probe[0] == id_:
            return _PROBE_TOKENS
        plan = self._plan
        return plan.num_drafts(self._acceptance.rate(plan.method, id_)) if plan.num_tokens else 0

    def method_for(self, sequence: EngineSequence) -> DraftMethod:
        """Who drafts for the sequence in this step, "off" if nobody."""
        if self._probe is not None and self._probe[0] == sequence.request.id:
            return self._probe[1]
        return self._plan.method

    def measured(self, stats: StepStats, num_tokens: int) -> None:
        """What a step of `num_tokens` (drafts included) cost; then think about the next."""
        is_news = bool(num_tokens) and not stats.num_prompt_tokens and self._record(stats, num_tokens)
        if not self._num_wishing:
            return
        if self._plan.method in self._lookup_costs and self._probe is None and not self._is_resting:
            self._lookup_costs[self._plan.method].record(self._num_wishing, stats.draft_seconds)
        self._num_wishing = 0
        self._num_steps += 1
        phase = self._num_steps % _STEPS_BETWEEN_PROBES
        if phase == _STEPS_PER_PROBE:
            self._probe, self._is_resting = None, False
        if self._is_planning and self._wishing:
            if phase == 0:
                self._choose_probe()
            self._planned_for = stats.num_running
            self._plan = self._best_plan(stats.num_running)
            self._wishing.clear()
        period = _STEPS_PER_PLAN if self._plan.num_tokens else _STEPS_PER_PLAN_OFF
        load_shift = abs(stats.num_running - self._planned_for)
        self._is_planning = is_news or (self._num_steps + 1) % period == 0 or load_shift > self._planned_for // 8

    def _record(self, stats: StepStats, num_tokens: int) -> bool:
        """What a step without prompt tokens cost. Returns whether nothing was known of the like."""
        seconds = stats.duration_seconds - stats.draft_seconds
        is_news = False
        if self._is_resting or not (self._plan.num_tokens or stats.num_draft_tokens):
            is_news = self._plain_costs.record(num_tokens, seconds / stats.num_passes)
        if stats.num_passes == 1:
            is_news = self._target_costs.record(num_tokens, seconds) or is_news
        return is_news

    def _plain_seconds(self, num_running: int) -> float:
        """What a token of each takes without drafts; 0 while nothing is known."""
        return self._plain_costs.estimate(num_running) or self._target_costs.estimate(num_running)

    def _choose_probe(self) -> None:
        """Let the sequence that has least to catch up with try another method, or nobody draft where everybody does."""
        others = [method for method in ("off", *self._methods) if method != self._plan.method]
        if not others:
            return
        turn = self._num_steps // _STEPS_BETWEEN_PROBES
        method = others[turn % len(others)]
        if method == "off":
            self._is_resting = True
            return
        sequence = min(self._wishing.values(), key=_num_behind)
        self._probe = (sequence.request.id, method)

    def _best_plan(self, num_running: int) -> Plan:
        num_running = max(num_running, len(self._wishing))
        seconds = self._plain_seconds(num_running)
        if not seconds:
            return self._plan
        load = Load(num_running, num_running / seconds, self._wishing.values())
        plans = [
            self._evaluate(method, count, load, rates)
            for method in self._methods
            for rates in (load.rates(method, self._acceptance),)
            for count in range(1, load.most_drafts + 1)
        ]
        best = max(plans, key=lambda plan: plan.tokens_per_second, default=Plan())
        return best if best.tokens_per_second > _WORTHWHILE * load.plain else Plan()

    def _evaluate(self, method: DraftMethod, count: int, load: Load, rates: Rates) -> Plan:
        """A plan with at most `count` drafts each."""
        coverage = self._acceptance.coverage(method)
        drafting = len(self._wishing) * coverage
        passes = self._seconds_drafting(method, count)
        alone = self._plain_seconds(load.num_running)
        extra = self._target_costs.estimate(load.num_running + round(drafting * count)) - alone + passes
        plan = Plan(method, count, worth=max(0.0, load.plain * extra / (drafting * count)))
        num_drafts = num_right = 0.0
        for (rate, most), num_alike in rates.items():
            wanted = min(plan.num_drafts(rate), most)
            num_drafts += num_alike * wanted
            num_right += num_alike * rate * (1 - rate**wanted) / (1 - rate)  # rate + rate**2 + ... + rate**wanted
        if not num_drafts:
            return Plan()
        seconds = self._target_costs.estimate(load.num_running + round(num_drafts * coverage)) + passes
        return Plan(method, count, plan.worth, (load.num_running + num_right * coverage) / seconds)

    def _seconds_drafting(self, method: DraftMethod, count: int) -> float:
        """What a step of the method's own work takes. Looking up takes little, and no longer for more drafts."""
        num_drafting = len(self._wishing)
        if method in self._lookup_costs:
            return self._lookup_costs[method].estimate(num_drafting)
        costs = self._pass_costs[method]
        num_behind = sum(map(_num_behind, self._wishing.values())) - num_drafting  # one is nobody's arrears
        behind_seconds = costs.estimate(max(1, num_behind)) if num_behind > num_drafting else 0.0
        return count * costs.estimate(num_drafting) + behind_seconds / _CATCH_UP_STEPS


def _num_behind(sequence: EngineSequence) -> int:
    """Tokens that the draft model would have to catch up with."""
    return sequence.num_tokens - sequence.num_draft_computed
