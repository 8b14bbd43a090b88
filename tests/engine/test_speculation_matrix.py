"""The matrix: generated requests get the same tokens, logprobs and end with speculation as without, to the last bit.

Strategies x temperatures x 1 to 8 drafts x drafters x batch shapes x preemption x prefix hits; see `speculation_cases`.
"""

from collections.abc import Iterator, Sequence

import pytest
from speculation_cases import STRATEGIES, TINY_SOURCES, Case, Source, batches
from speculation_runs import Laboratory, Tally

from server.engine.types import MAX_DRAFT_TOKENS

# Few batches by default, of every shape but the largest; the slow tests run them all.
BY_DEFAULT = (0, 1, 3, 5)
SLOW = (range(6, 21), range(21, 36))
SLOW_TRAINED = range(4)
ALWAYS_RIGHT, ALWAYS_WRONG = ("itself", "right"), ("wrong",)


@pytest.fixture(scope="module")
def laboratory() -> Iterator[Laboratory]:
    laboratory = Laboratory()
    yield laboratory
    laboratory.close()


def tally_of(laboratory: Laboratory, source: Source, seeds: Sequence[int]) -> Tally:
    """Run the batches; whatever differs is raised by name."""
    tally = Tally()
    for batch in batches(source, seeds):
        laboratory.check(batch, laboratory.truth(batch), tally)
    return tally


def check_drafts(tally: Tally, drafters: Sequence[str]) -> None:
    """Every way of drafting was right at times and wrong at times, but for those that know better or worse."""
    for drafter in drafters:
        drafted, accepted = tally.drafted[drafter], tally.accepted[drafter]
        assert drafted > 0, drafter
        assert (accepted > 0) == (drafter not in ALWAYS_WRONG), (drafter, drafted, accepted)
        assert (accepted < drafted) == (drafter not in ALWAYS_RIGHT), (drafter, drafted, accepted)


@pytest.mark.parametrize("source", TINY_SOURCES)
def test_speculation_never_shows(laboratory: Laboratory, source: Source) -> None:
    tally = tally_of(laboratory, source, BY_DEFAULT)
    assert tally.num_cases >= 60
    assert tally.num_preemptions > 0
    assert tally.num_cached > 0
    check_drafts(tally, (source, "ngram", "suffix"))


def test_speculation_of_the_shipped_pair_never_shows(laboratory: Laboratory) -> None:
    check_drafts(tally_of(laboratory, "trained", (3,)), ("trained",))


@pytest.mark.slow
@pytest.mark.parametrize("seeds", SLOW, ids=str)
@pytest.mark.parametrize("source", TINY_SOURCES)
def test_speculation_never_shows_in_the_whole_matrix(
    laboratory: Laboratory, source: Source, seeds: Sequence[int]
) -> None:
    tally = tally_of(laboratory, source, seeds)
    assert tally.num_cases >= 200
    check_drafts(tally, (source, "ngram", "suffix"))
    assert tally.accepted["auto"] > 0
    if source == "itself":
        check_drafts(tally, ("guided",))


@pytest.mark.slow
def test_speculation_of_the_shipped_pair_never_shows_in_the_whole_matrix(laboratory: Laboratory) -> None:
    check_drafts(tally_of(laboratory, "trained", SLOW_TRAINED), ("trained", "ngram", "suffix"))


def test_the_whole_matrix_crosses_every_strategy_with_every_drafter_and_number_of_drafts() -> None:
    """Counted over first turns alone, which need no model; the second turns come on top."""
    cases = [
        case for source in TINY_SOURCES for seeds in SLOW for batch in batches(source, seeds) for case in batch.cases
    ]
    asked = [case for case in cases if case.speculates]
    assert len(asked) >= 1500
    numbers, temperatures = range(1, MAX_DRAFT_TOKENS + 1), {case.request.params.temperature for case in cases}
    for drafter in (*TINY_SOURCES, "ngram", "suffix", "auto"):
        own = [case for case in asked if case.drafter == drafter]
        assert {case.request.speculation.num_tokens for case in own} == set(numbers), drafter
        assert {case.request.params.temperature for case in own} == temperatures, drafter
        assert strategies_of(own) == set(STRATEGIES) - ({"guidance"} if drafter == "itself" else set()), drafter


def strategies_of(cases: Sequence[Case]) -> set[str]:
    return {name for case in cases for name in case.strategies}
