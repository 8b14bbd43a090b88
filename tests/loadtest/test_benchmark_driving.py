"""The benchmark that loads two servers in turn: what it compares, and what it refuses to."""

from dataclasses import replace

import pytest
from fake_openai import Behaviour, FakeOpenAI

from benchmarks.cells import Cell, Plan, rates
from benchmarks.driving import Comparison, Load, Measured, Peer, compare, measure, spread

LOAD = Load(concurrency=2, prompt_tokens=4, output_tokens=3, num_requests=4, vocab_size=50, seed=1)


def test_both_servers_of_a_pair_get_the_same_requests_as_often_as_there_are_rounds(fake: FakeOpenAI, other: FakeOpenAI):
    comparison = compare(fake.url, Peer(other.url, "tiny", rounds=2), LOAD, num_warmup=1)
    assert len(comparison.ours) == len(comparison.theirs) == len(comparison.speed_ratios) == 2
    prompts = [sorted(body["prompt"] for body in server.bodies) for server in (fake, other)]
    assert prompts[0] == prompts[1]
    assert len(prompts[0]) == 2 * (1 + LOAD.num_requests)
    assert all(body["ignore_eos"] and body["temperature"] == 0.0 for body in fake.bodies + other.bodies)


def test_a_slower_peer_has_ratios_that_say_so(fake: FakeOpenAI, other: FakeOpenAI):
    other.behave = lambda number, body: Behaviour(delay_seconds=0.05)
    comparison = compare(fake.url, Peer(other.url, None, rounds=1), LOAD, num_warmup=0)
    assert comparison.speed_ratios[0] > 1 > comparison.first_token_ratios[0]


def test_loads_of_different_seeds_share_no_prompt(fake: FakeOpenAI):
    measure(fake.url, LOAD)
    measure(fake.url, replace(LOAD, seed=2))
    prompts = [tuple(body["prompt"]) for body in fake.bodies]
    assert len(set(prompts)) == len(prompts) == 2 * LOAD.num_requests


def test_a_load_of_prompts_is_measured_in_prompt_tokens(fake: FakeOpenAI):
    load = replace(LOAD, output_tokens=1)
    measured = measure(fake.url, load)
    num_prompt_tokens = measured.tokens_per_second * measured.duration_seconds
    assert num_prompt_tokens == pytest.approx(load.num_requests * load.prompt_tokens)
    assert measured.inter_token_latency_ms is None


def test_answers_that_end_early_are_not_measured(fake: FakeOpenAI):
    fake.behave = lambda number, body: Behaviour(max_tokens=2)
    with pytest.raises(SystemExit, match="8 tokens where 12 were asked for"):
        measure(fake.url, LOAD)


def test_a_failed_request_ends_the_benchmark_with_its_error(fake: FakeOpenAI):
    fake.behave = lambda number, body: Behaviour(status=500 if number == 2 else 200)
    with pytest.raises(SystemExit, match="http_500"):
        measure(fake.url, LOAD)


def test_ratios_are_those_of_pairs_and_not_of_medians():
    def run(speed: float, first: float) -> Measured:
        return Measured(speed, first, None, 1.0)

    comparison = Comparison([run(10, 1), run(40, 2), run(90, 3)], [run(10, 2), run(20, 4), run(30, 3)])
    assert comparison.speed_ratios == [1, 2, 3]
    assert comparison.first_token_ratios == [0.5, 0.5, 1]
    assert spread(comparison.speed_ratios) == "2.00 (1.00 to 3.00)"


def test_engines_are_compared_by_equal_prompts_none_of_them_twice():
    plan = Plan([Cell(3, 5, 2), Cell(1, 8, 1)], vocab_size=1_000, seconds=0.0)

    def recorded() -> list[list[int]]:
        seen: list[list[int]] = []

        def decode(prompts: list[list[int]], num_tokens: int) -> int:
            seen.extend(prompts)
            return len(prompts) * num_tokens

        assert all(rate > 0 for rate in rates(Plan.from_json(plan.to_json()), decode))
        return seen

    first = recorded()
    assert first == recorded()
    # A batch to warm up and one that is measured, of each cell.
    assert [len(prompt) for prompt in first] == [5] * 6 + [8] * 2
    assert len({tuple(prompt) for prompt in first}) == len(first)


def test_an_engine_that_stops_early_is_not_measured():
    plan = Plan([Cell(2, 5, 4)], vocab_size=10, seconds=0.0)
    with pytest.raises(ValueError, match="5 \\+ 4 at 2: 7 tokens came out where 8 were asked for"):
        rates(plan, lambda prompts, num_tokens: 7)
