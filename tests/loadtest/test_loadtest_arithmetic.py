"""Percentiles, schedules, lengths, workloads, goodput, plans and ratios: the parts without I/O."""

import dataclasses
import json

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from loadtest_records import a_record, a_run

from loadtest.config import Config, LoadOptions, RequestOptions, VersusOptions
from loadtest.goodput import Limits, parse_limits
from loadtest.lengths import parse_length
from loadtest.payload import BodyWriter, endpoint_url
from loadtest.plan import load_points, plan
from loadtest.refusal import ConfigError
from loadtest.schedule import poisson_arrivals
from loadtest.statistics import percentile, spread_ms, summarize
from loadtest.versus import compare
from loadtest.workload import Workload

FINITE = st.floats(-1e6, 1e6)


@settings(deadline=None)
@given(values=st.lists(FINITE, min_size=1), percent=st.floats(0, 100))
def test_percentiles_agree_with_numpy(values, percent):
    assert percentile(sorted(values), percent) == pytest.approx(float(np.percentile(values, percent)), abs=1e-6)


def test_a_spread_of_nothing_is_none_and_of_one_value_is_that_value():
    assert spread_ms([None, None]) is None
    spread = spread_ms([0.25, None])
    assert spread is not None
    assert dataclasses.astuple(spread) == (1, 250.0, 250.0, 250.0, 250.0, 250.0, 250.0)


def test_poisson_arrivals_are_a_function_of_the_seed():
    first = poisson_arrivals(50, 100, None, (1, 2))
    assert first == poisson_arrivals(50, 100, None, (1, 2))
    assert first != poisson_arrivals(50, 100, None, (1, 3))
    assert first[:60] == poisson_arrivals(50, 60, None, (1, 2))


def test_poisson_gaps_have_the_mean_deviation_and_tail_of_an_exponential():
    gaps = np.diff([0.0, *poisson_arrivals(20, 20_000, None, (7,))])
    assert gaps.mean() == pytest.approx(1 / 20, rel=0.03)
    assert gaps.std() == pytest.approx(1 / 20, rel=0.05)
    assert (gaps > 3 / 20).mean() == pytest.approx(np.exp(-3), rel=0.1)


def test_a_duration_ends_the_arrivals_and_is_covered():
    arrivals = poisson_arrivals(100, None, 50.0, (3,))
    assert arrivals == sorted(arrivals)
    assert 49.5 < arrivals[-1] < 50
    assert len(arrivals) == pytest.approx(5000, abs=300)


@pytest.mark.parametrize(
    ("text", "low", "high", "middle"),
    [
        ("fixed:48", 48, 48, 48),
        ("uniform:16:64", 16, 64, 40),
        ("normal:48:12", 1, 150, 48),
        ("lognormal:48:0.5:200", 1, 200, 48),
    ],
)
def test_lengths_stay_in_range_around_their_middle(text, low, high, middle):
    rng = np.random.default_rng(0)
    length = parse_length("prompt_length", text)
    drawn = [length.draw(rng) for _ in range(2000)]
    assert low <= min(drawn) <= max(drawn) <= high
    assert np.median(drawn) == pytest.approx(middle, rel=0.06)


BAD_LENGTHS = (
    "48 fixed fixed:0 fixed:1.5 fixed:1:2 fixed:x uniform:9:3 uniform:1 normal:48 normal:nan:1 normal:48:-1 "
    "normal:48:1:2.5 lognormal:48:9 lognormal:48:1:0 zipf:3"
)


@pytest.mark.parametrize("text", BAD_LENGTHS.split())
def test_bad_lengths_are_refused_by_name_and_value(text):
    with pytest.raises(ConfigError, match=f"^--prompt-length {text}: "):
        parse_length("prompt_length", text)


def test_a_request_does_not_depend_on_those_made_before_it():
    options = RequestOptions(prompt_length="uniform:4:40", output_length="normal:20:5", disconnect_fraction=0.5)
    forward, backward = Workload(options), Workload(options)
    made = [forward.request(index) for index in range(20)]
    assert made == [backward.request(index) for index in reversed(range(20))][::-1]
    assert len({request.prompt for request in made}) == 20
    assert made[3] != Workload(dataclasses.replace(options, seed=1)).request(3)


def test_token_prompts_have_exact_lengths_below_the_vocabulary_and_a_common_prefix():
    options = RequestOptions(prompt_length="fixed:9", prompt_token_ids=True, vocab_size=50, shared_prefix=5)
    prompts = [Workload(options).request(index).prompt for index in range(10)]
    assert all(isinstance(prompt, list) and len(prompt) == 14 and max(prompt) < 50 for prompt in prompts)
    assert len({tuple(prompt[:5]) for prompt in prompts}) == 1
    assert len({tuple(prompt[5:]) for prompt in prompts}) == 10


def test_word_prompts_have_their_length_in_words_and_a_common_prefix():
    workload = Workload(RequestOptions(prompt_length="fixed:7", shared_prefix=3))
    words = [str(workload.request(index).prompt).split() for index in (0, 1)]
    assert len(words[0]) == 10
    assert words[0][:3] == words[1][:3]


def test_prompts_from_lines_come_in_turn():
    workload = Workload(RequestOptions(), ["one", "two"])
    assert [workload.request(index).prompt for index in range(3)] == ["one", "two", "one"]


def test_the_disconnecting_share_is_near_the_fraction_asked_for():
    workload = Workload(RequestOptions(disconnect_fraction=0.3))
    leaving = [workload.request(index).disconnect_after is not None for index in range(1000)]
    assert np.mean(leaving) == pytest.approx(0.3, abs=0.05)


def test_extra_fields_have_the_last_word_and_null_removes():
    options = RequestOptions(
        extra_body='{"seed": null, "temperature": 0.5, "top_k": 3}', ignore_eos=True, min_tokens=True
    )
    body = json.loads(BodyWriter("m", "chat", options).write(Workload(options).request(0)))
    assert "seed" not in body
    assert (body["temperature"], body["top_k"], body["ignore_eos"], body["min_tokens"]) == (0.5, 3, True, 64)
    assert body["messages"][0]["role"] == "user"
    assert body["stream_options"] == {"include_usage": True}


@pytest.mark.parametrize("base", ["http://h:1", "http://h:1/", "http://h:1/v1", "http://h:1/v1/"])
def test_addresses_with_and_without_v1_are_the_same(base):
    assert endpoint_url(base, "/v1/models") == "http://h:1/v1/models"


def test_goodput_counts_requests_within_all_limits():
    records = [
        a_record(0, ttft=0.1, itls=(0.01, 0.02), e2e=1.0),
        a_record(1, ttft=0.3, itls=(0.01, 0.02), e2e=1.0),
        a_record(2, ttft=0.1, itls=(0.01, 0.05), e2e=1.0),
        a_record(3, ttft=0.1, itls=(0.01, 0.02), e2e=9.0),
        a_record(4, outcome="error", error_kind="timeout"),
        a_record(5, outcome="disconnected"),
    ]
    limits = parse_limits("goodput", ["ttft:200", "itl:20", "e2e:5000"])
    assert limits == Limits(ttft=200, itl=20, e2e=5000)
    goodput = summarize(records, 2.0, limits).goodput
    assert goodput is not None
    assert (goodput.good, goodput.share, goodput.requests_per_second) == (1, 1 / 5, 0.5)


def test_tpot_is_a_limit_of_its_own():
    assert Limits(tpot=10).met_by(a_record(0, tpot=0.0099))
    assert not Limits(tpot=10).met_by(a_record(0, tpot=0.011))


@settings(deadline=None)
@given(outcomes=st.lists(st.sampled_from(["ok", "error", "disconnected"])))
def test_totals_balance_whatever_happened(outcomes):
    records = [a_record(i, outcome=o, error_kind="http_500" if o == "error" else None) for i, o in enumerate(outcomes)]
    totals = summarize(records, 1.0, None).totals
    assert totals.sent == len(outcomes) == totals.ok + totals.errors + totals.disconnected
    assert sum(totals.errors_by_kind.values()) == totals.errors


def test_rates_count_ok_requests_over_the_whole_run():
    records = [a_record(i, prompt_tokens=30, output_tokens=10) for i in range(4)]
    records.append(a_record(4, outcome="error", error_kind="truncated", output_tokens=99))
    rates = summarize(records, 2.0, None).throughput
    assert (rates.requests, rates.output_tokens, rates.prompt_tokens, rates.total_tokens) == (2.0, 20.0, 60.0, 80.0)


def test_in_flight_and_lag_follow_from_the_times():
    times = [(0.0, 0.0, 2.0), (0.5, 1.0, 3.0), (2.0, 2.0, 4.0)]
    records = [a_record(i, intended=a, sent=b, end=c) for i, (a, b, c) in enumerate(times)]
    summary = summarize(records, 4.0, None)
    assert (summary.peak_in_flight, summary.mean_in_flight, summary.max_send_lag_ms) == (2, 1.5, 500.0)


def test_a_sweep_of_one_value_is_a_ladder_up_to_it():
    assert [p.value for p in load_points(LoadOptions(concurrency=(20,), sweep=True))] == [1, 2, 4, 8, 16, 20]
    assert [p.value for p in load_points(LoadOptions(rate=(16.0,), sweep=True))] == [2, 4, 8, 16]
    assert [p.value for p in load_points(LoadOptions(concurrency=(1, 8, 32)))] == [1, 8, 32]


def test_servers_take_turns_going_first_and_get_the_same_work():
    steps = plan(LoadOptions(concurrency=(1, 4)), VersusOptions(versus="http://b", rounds=3))
    assert "".join(step.label for step in steps) == "ABBAAB" * 2
    pairs = list(zip(steps[::2], steps[1::2], strict=True))
    assert all(first.first_index == second.first_index for first, second in pairs)
    assert len({first.first_index for first, _ in pairs}) == 6


def test_ratios_are_first_over_second_pair_by_pair_with_their_median():
    speeds = {"A": [30, 20, 50], "B": [10, 10, 10]}
    runs = [a_run(label, turn, speeds[label][turn]) for turn in range(3) for label in ("A", "B")]
    by_metric = {item.metric: item for item in compare(runs)}
    assert by_metric["output_tokens_per_second"].ratios == [3.0, 2.0, 5.0]
    assert by_metric["output_tokens_per_second"].median == 3.0
    assert by_metric["ttft_p50"].ratios == [1.0, 1.0, 1.0]
    assert by_metric["itl_p50"].median is None


def test_one_server_alone_makes_no_ratios():
    assert compare([a_run("A", 0, 10)]) == []


def test_the_default_configuration_is_valid():
    assert Config().load.max_requests == 100
