"""Metrics: names a Prometheus user expects, a closed set of series, buckets that resolve a Mini-GPT, right numbers."""

import random
import re
from bisect import bisect_left
from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import pytest
from fake_core import FakeCore
from prometheus_client import CollectorRegistry, Metric
from prometheus_client import Histogram as LockingHistogram
from prometheus_client.parser import text_string_to_metric_families

from server.families import Gauge, Histogram
from server.metrics import REQUEST_SECONDS, TOKEN_SECONDS, Metrics
from server.records import RequestRecord, SequenceRecord, StepTimings, TokenGap

STATS = replace(FakeCore().step().stats, num_prompt_tokens=100, num_generated_tokens=4, duration_seconds=0.5)
OPERATIONS = Path(__file__).resolve().parents[2] / "docs" / "operations.md"
LABELS = {
    "model": {"a", "b"},
    "outcome": {"stop", "length", "abort", "error"},
    "reason": {"queue_full", "unavailable", "draining"},
    "phase": {"schedule", "draft", "forward", "sample", "other"},
    "method": {"draft", "ngram", "suffix"},
    "position": set("12345678"),
    "state": {"free", "cached", "used"},
}


def families(metrics: Metrics, *, with_runtime: bool = False) -> dict[str, Metric]:
    """What a scraper sees, by name."""
    parsed = text_string_to_metric_families(metrics.render().decode())
    return {family.name: family for family in parsed if with_runtime or family.name.startswith("minigpt_")}


def value(metrics: Metrics, sample_name: str, **labels: str) -> float:
    for family in families(metrics).values():
        for sample in family.samples:
            if sample.name == sample_name and sample.labels == labels:
                return sample.value
    raise KeyError(sample_name, labels)


def busy() -> Metrics:
    """Metrics after one of everything."""
    metrics = Metrics(["a", "b"])
    metrics.on_engine_ready()
    metrics.on_rejected("a", "queue_full")
    metrics.on_started("a", 2)
    metrics.on_step("a", STATS, StepTimings([0.25], [0.5], [0.75], [TokenGap(0.002, 3)]))
    metrics.on_finished(SequenceRecord("a", "stop", 10.0, 11.0, 12.0, 15.0, 100, 4))
    metrics.on_finished(SequenceRecord("a", "error", 10.0, None, None, 16.0, 7, 0))
    metrics.on_request_finished(RequestRecord("a", "error", 10.0, 16.0))
    return metrics


def test_every_step_is_in_the_next_rendering() -> None:
    metrics = Metrics(["a", "b"])
    for num_steps in range(1, 100):
        metrics.on_step("a", STATS, StepTimings())
        if num_steps % 7 == 0:
            assert value(metrics, "minigpt_step_duration_seconds_count", model="a") == num_steps


def test_names_and_types_follow_the_rules_of_prometheus() -> None:
    text = busy().render().decode()
    for name, kind in re.findall(r"^# TYPE (minigpt_\S+) (\S+)$", text, re.MULTILINE):
        assert re.fullmatch(r"minigpt_[a-z]+(_[a-z]+)*", name)
        assert (kind == "counter") == name.endswith("_total"), name
        assert not re.search(r"_(milliseconds|ms|kilobytes|mb|percent|count|sum|bucket|info|created)(_|$)", name), name
        assert re.search(rf"^# HELP {name} \S.*\.$", text, re.MULTILINE), name


def test_every_histogram_names_its_unit() -> None:
    histograms = [family.name for family in families(busy()).values() if family.type == "histogram"]
    assert len(histograms) == 10
    assert all(name.endswith(("_seconds", "_tokens")) for name in histograms)


def test_the_set_of_series_is_closed_and_complete_before_anything_has_happened() -> None:
    def series(metrics: Metrics) -> set[tuple[str, frozenset[tuple[str, str]]]]:
        samples = [sample for family in families(metrics).values() for sample in family.samples]
        return {(sample.name, frozenset(sample.labels.items())) for sample in samples}

    assert series(busy()) == series(Metrics(["a", "b"]))
    for _, labels in series(busy()):
        for name, label_value in labels:
            assert name == "le" or label_value in LABELS[name]


def test_a_label_value_that_was_not_declared_is_refused() -> None:
    metrics = Metrics(["a"])
    with pytest.raises(KeyError):
        metrics.on_started("made-up-by-a-client", 1)
    with pytest.raises(KeyError):
        Gauge("g", "text", {"model": ["a"]}).set(1, "b")


@pytest.mark.parametrize(("bounds", "low", "high"), [(TOKEN_SECONDS, 0.00001, 10.0), (REQUEST_SECONDS, 0.001, 600.0)])
def test_buckets_resolve_a_mini_gpt_and_reach_up_to_minutes(bounds: tuple[float, ...], low: float, high: float) -> None:
    assert bounds[0] == low
    assert bounds[-1] == high
    # A quantile read off a bucket is at most this factor from the truth.
    assert all(1 < above / below < 1.6 for below, above in pairwise(bounds))


def test_every_number_ends_up_in_its_series() -> None:
    metrics = busy()
    expected = {
        ("minigpt_requests_started_total",): 1,
        ("minigpt_requests_finished_total", "outcome", "error"): 1,
        ("minigpt_requests_in_flight",): 0,
        ("minigpt_requests_rejected_total", "reason", "queue_full"): 1,
        ("minigpt_sequences_started_total",): 2,
        ("minigpt_sequences_finished_total", "outcome", "stop"): 1,
        ("minigpt_sequences_finished_total", "outcome", "error"): 1,
        ("minigpt_sequences_in_flight",): 0,
        ("minigpt_prompt_tokens_total",): 100,
        ("minigpt_generated_tokens_total",): 4,
        ("minigpt_step_tokens_sum",): 104,
        ("minigpt_step_duration_seconds_sum",): 0.5,
        ("minigpt_step_phase_seconds_total", "phase", "other"): 0.5,
        ("minigpt_queue_seconds_sum",): 0.25,
        ("minigpt_prefill_seconds_sum",): 0.5,
        ("minigpt_time_to_first_token_seconds_sum",): 0.75,
        ("minigpt_inter_token_latency_seconds_count",): 3,
        ("minigpt_inter_token_latency_seconds_sum",): 0.006,
        ("minigpt_decode_seconds_sum",): 3,
        ("minigpt_decode_seconds_count",): 1,
        ("minigpt_end_to_end_seconds_sum",): 11,
        ("minigpt_sequence_prompt_tokens_sum",): 107,
        ("minigpt_sequence_output_tokens_sum",): 4,
    }
    for (name, *split), number in expected.items():
        labels = {"model": "a", **({split[0]: split[1]} if split else {})}
        assert value(metrics, name, **labels) == pytest.approx(number), name


def test_the_gauges_show_the_last_step_and_nothing_once_the_engine_is_gone() -> None:
    metrics = Metrics(["a"])
    stats = replace(STATS, num_running=3, num_waiting=2, num_blocks=64, num_free_blocks=40, num_cached_blocks=8)
    metrics.on_engine_ready()
    metrics.on_step("a", stats, StepTimings())
    gauges = {
        ("minigpt_sequences_running", "a"): 3.0,
        ("minigpt_sequences_waiting", "a"): 2.0,
        ("minigpt_kv_usage_ratio", "a"): 0.25,
        ("minigpt_kv_blocks", "a", "free"): 40.0,
        ("minigpt_kv_blocks", "a", "cached"): 8.0,
        ("minigpt_kv_blocks", "a", "used"): 16.0,
    }

    def shown() -> dict[tuple[str, ...], float]:
        samples = [sample for family in families(metrics).values() for sample in family.samples]
        by_key = {(sample.name, *sample.labels.values()): sample.value for sample in samples}
        return {key: by_key[key] for key in gauges}

    assert shown() == gauges
    assert value(metrics, "minigpt_engine_ready") == 1
    metrics.on_engine_lost()
    assert shown() == dict.fromkeys(gauges, 0.0)
    assert value(metrics, "minigpt_engine_ready") == 0
    assert value(metrics, "minigpt_engine_exits_total") == 1


def test_batched_observations_equal_one_by_one_ones_of_the_library() -> None:
    random.seed(5)
    bounds = (0.001, 0.01, 0.1, 1.0)
    registry = CollectorRegistry()
    theirs = LockingHistogram("x_seconds", "Text.", ["model"], registry=registry, buckets=bounds)
    ours = Histogram("x_seconds", "Text.", {"model": ["a"]}, bounds)
    observations = [(random.choice([*bounds, 10 ** random.uniform(-4, 1)]), random.randint(1, 5)) for _ in range(300)]
    for seconds, count in observations:
        ours.observe(seconds, "a", count=count)
        for _ in range(count):
            theirs.labels("a").observe(seconds)
    (expected,) = registry.collect()
    (got,) = ours.collect()
    compared = {s.name + s.labels.get("le", ""): s.value for s in expected.samples if not s.name.endswith("_created")}
    assert {s.name + s.labels.get("le", ""): s.value for s in got.samples} == pytest.approx(compared)
    assert bisect_left(bounds, bounds[2]) == 2  # a value on a bound belongs to that bound's bucket, "less or equal"


def test_the_process_itself_is_measured_too() -> None:
    names = families(Metrics(["a"]), with_runtime=True)
    assert {"process_cpu_seconds", "process_resident_memory_bytes", "python_info", "python_gc_collections"} <= set(
        names
    )


def test_every_metric_is_documented_and_every_documented_metric_exists() -> None:
    rows = re.findall(
        r"^\| `(minigpt_\w+)` \| (\w+) \| ([^|]*) \|", OPERATIONS.read_text(encoding="utf-8"), re.MULTILINE
    )
    documented = {name: (kind, tuple(re.findall(r"`(\w+)`", labels))) for name, kind, labels in rows}
    text = busy().render().decode()
    exposed = {}
    for name, kind in re.findall(r"^# TYPE (minigpt_\S+) (\S+)$", text, re.MULTILINE):
        first = re.search(rf"^{name}(?:_bucket)?(?:{{(.*)}})? ", text, re.MULTILINE)
        assert first is not None
        labels = tuple(label for label in re.findall(r'(\w+)="', first[1] or "") if label != "le")
        exposed[name] = (kind, labels)
    assert documented == exposed
