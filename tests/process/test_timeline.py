"""The timeline: a valid trace, the right numbers in it, nothing of anybody else's, and a bounded memory."""

import random
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import msgspec
import pytest
from fake_core import FakeCore
from trace_format import check_trace

from server import timeline
from server.engine.types import SequenceStep, StepStats
from server.origins import Origin, Origins
from server.records import StepTimings
from server.timeline import Timeline, View, trace_events

STATS = FakeCore().step().stats
STAGES = (0.001, 0.002, 0.004, 0.003)  # schedule, draft, forward, sample
OVERHEAD = 0.002


def step(started_at: float, *sequences: SequenceStep, stages: Sequence[float] = STAGES) -> StepStats:
    schedule, draft, forward, sample = stages
    return replace(
        STATS,
        started_at=started_at,
        duration_seconds=sum(stages) + OVERHEAD,
        schedule_seconds=schedule,
        draft_seconds=draft,
        forward_seconds=forward,
        sample_seconds=sample,
        num_preemptions=2,
        num_running=3,
        num_waiting=4,
        num_blocks=64,
        num_free_blocks=50,
        num_cached_blocks=6,
        sequences=sequences,
    )


def trace_of(steps: Sequence[StepStats], view: View) -> list[dict[str, Any]]:
    """As a viewer reads it, checked."""
    events = [event for part in trace_events("tiny", 1, steps, view) for event in part]
    trace = msgspec.json.decode(msgspec.json.encode({"traceEvents": events}))
    check_trace(trace)
    return list(trace["traceEvents"])


def named(events: Sequence[dict[str, Any]], name: str) -> list[dict[str, Any]]:
    return [event for event in events if event["name"] == name]


def view_of(*origins: Origin, salt_prefix: str = "") -> View:
    return View(dict(enumerate(origins)).get, salt_prefix)


def filled(*steps: StepStats) -> Timeline:
    steps_of_tiny = Timeline(["tiny", "other"])
    for one in steps:
        steps_of_tiny.on_step("tiny", one, StepTimings())
    return steps_of_tiny


def test_a_step_is_a_slice_with_its_stages_in_order_inside_it() -> None:
    events = trace_of([step(100.0)], view_of())
    slices = [(event["name"], event["ts"], event["dur"]) for event in events if event["ph"] == "X"]
    assert slices == [
        ("step", 100_000_000, 12_000),
        ("schedule", 100_000_000, 1_000),
        ("draft", 100_001_000, 2_000),
        ("forward", 100_005_000, 4_000),
        ("sample", 100_009_000, 3_000),
    ]


def test_gauges_are_counters_at_the_end_of_the_step_and_blocks_conserve() -> None:
    events = trace_of([step(100.0)], view_of())
    assert [(event["name"], event["ts"], event["args"]) for event in events if event["ph"] == "C"] == [
        ("sequences", 100_012_000, {"running": 3, "waiting": 4}),
        ("blocks", 100_012_000, {"free": 50, "cached": 6, "referenced": 8}),
    ]
    (only,) = named(events, "step")
    assert only["args"]["blocks"] == {"free": 50, "cached": 6, "referenced": 8}
    assert only["args"]["preemptions"] == 2


def test_own_sequences_are_named_as_their_answers_are() -> None:
    view = view_of(Origin("cmpl-a", 0, "me|"), Origin("cmpl-a", 1, "me|salted"), salt_prefix="me|")
    events = trace_of([step(1.0, SequenceStep(0, 7, 0, 0, 0), SequenceStep(1, 0, 1, 4, 2))], view)
    args = named(events, "step")[0]["args"]
    zero = {"sequences": 0, "prompt_tokens": 0, "decode_tokens": 0}
    assert args["others"] == zero
    assert args["sequences"] == [
        {"id": "cmpl-a", "index": 0, "prompt_tokens": 7, "decode_tokens": 0, "draft_tokens": 0, "accepted_tokens": 0},
        {"id": "cmpl-a", "index": 1, "prompt_tokens": 0, "decode_tokens": 1, "draft_tokens": 4, "accepted_tokens": 2},
    ]


def test_of_others_only_their_load_is_told() -> None:
    """Foreign sequences, those the engine made itself, and those too old to be known."""
    view = view_of(Origin("cmpl-mine", 0, "me|"), Origin("cmpl-secret", 0, "you|"), salt_prefix="me|")
    ran = [SequenceStep(id_, 10, 1, 4, 3) for id_ in (0, 1, -1, 99)]
    events = trace_of([step(1.0, *ran)], view)
    args = named(events, "step")[0]["args"]
    assert [one["id"] for one in args["sequences"]] == ["cmpl-mine"]
    assert args["others"] == {"sequences": 3, "prompt_tokens": 30, "decode_tokens": 3}
    assert "secret" not in str(events)


def test_to_who_owns_everything_a_sequence_of_the_engines_own_has_no_answer() -> None:
    args = named(trace_of([step(1.0, SequenceStep(-3, 5, 0, 0, 0))], view_of()), "step")[0]["args"]
    assert [(one["id"], one["index"], one["prompt_tokens"]) for one in args["sequences"]] == [(None, None, 5)]
    assert args["others"]["sequences"] == 0


def test_random_steps_make_valid_traces() -> None:
    chance = random.Random(5)
    now, steps = 1e6 * chance.random(), []
    for _ in range(2_000):
        stages = [chance.choice((0.0, chance.random() * 1e-5, chance.random())) for _ in range(4)]
        steps.append(step(now, stages=stages))
        now += steps[-1].duration_seconds + chance.choice((0.0, chance.random() * 1e-4))
    assert len(named(trace_of(steps, view_of()), "step")) == 2_000


def test_times_that_do_not_add_up_stay_within_their_step() -> None:
    torn = replace(step(5.0), duration_seconds=0.001)
    trace_of([torn, step(5.001)], view_of())


@pytest.mark.parametrize("seconds", [1, 3, 60])
def test_only_the_last_seconds_are_told(seconds: int) -> None:
    steps = [step(100.0 + n) for n in range(10)]
    recent = filled(*steps).recent("tiny", seconds)
    since = 109.0 + sum(STAGES) + OVERHEAD - seconds
    assert recent == [one for one in steps if one.started_at >= since]
    assert recent[-1] == steps[-1]


def test_models_are_kept_apart() -> None:
    assert filled(step(1.0)).recent("other", 60) == []


def test_memory_is_bounded_by_seconds_steps_and_sequences(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(timeline, "MAX_STEPS", 50)
    monkeypatch.setattr(timeline, "MAX_SEQUENCE_STEPS", 90)
    ran = [SequenceStep(n, 0, 1, 0, 0) for n in range(9)]
    assert len(filled(*(step(n / 1000) for n in range(200))).recent("tiny", 60)) == 50
    assert len(filled(*(step(n / 1000, *ran) for n in range(200))).recent("tiny", 60)) == 10
    assert len(filled(*(step(float(10 * n)) for n in range(40))).recent("tiny", 1e9)) == 6
    # The last step stays, however large it is.
    assert len(filled(step(1.0), step(2.0, *ran * 20)).recent("tiny", 60)) == 1


def test_a_crowd_of_steps_leaves_the_same_as_the_last_of_them(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(timeline, "MAX_SEQUENCE_STEPS", 90)
    chance = random.Random(3)
    steps = [step(n / 10, *[SequenceStep(0, 0, 1, 0, 0)] * chance.randrange(20)) for n in range(500)]
    kept = filled(*steps).recent("tiny", 60)
    assert kept == steps[-len(kept) :]
    total = sum(len(one.sequences) for one in kept)
    assert total <= 90 < total + len(steps[-len(kept) - 1].sequences)


def test_the_oldest_origins_are_forgotten_first() -> None:
    origins = Origins(max_origins=3)
    for id_ in range(5):
        origins.note(id_, Origin("cmpl", id_, ""))
    assert [origins.find(id_) is None for id_ in range(5)] == [True, True, False, False, False]


def broken(**changes: object) -> dict[str, Any]:
    """A trace with one fault in its second slice."""
    events = [
        {"name": "step", "ph": "X", "ts": 0, "dur": 10, "pid": 1, "tid": 1},
        {"name": "schedule", "ph": "X", "ts": 2, "dur": 3, "pid": 1, "tid": 1} | changes,
        {"name": "gauge", "ph": "C", "ts": 10, "pid": 1, "tid": 1, "args": {"running": 1}},
    ]
    return {"traceEvents": [{key: value for key, value in event.items() if value is not None} for event in events]}


@pytest.mark.parametrize(
    "fault", [{"dur": 9}, {"dur": -1}, {"dur": None}, {"ts": -1}, {"ts": 11}, {"tid": None}, {"ph": "Q"}, {"ts": "2"}]
)
def test_control_of_the_trace_checker(fault: dict[str, object]) -> None:
    check_trace(broken())
    with pytest.raises(AssertionError):
        check_trace(broken(**fault))


def test_a_stage_that_took_no_time_has_no_slice() -> None:
    events = trace_of([step(1.0, stages=(0.001, 0.002, 0.0, 0.003))], view_of())
    assert [event["name"] for event in events if event["ph"] == "X"] == ["step", "schedule", "draft", "sample"]
