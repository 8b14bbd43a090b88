"""The engine's last steps, kept in the HTTP process and told as a trace that Perfetto and chrome://tracing open.

The format is Chrome's trace event format (the JSON object form): complete events "X" with times in microseconds,
counters "C", metadata "M". Knows no HTTP.
"""

from collections import deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import accumulate
from typing import Literal, NamedTuple

import msgspec
from msgspec import UNSET, Struct, UnsetType

from server.engine.types import SequenceStep, StepStats
from server.origins import Origin
from server.records import Rejection, RequestRecord, SequenceRecord, StepTimings

# What is kept of each model; whichever is reached first. A step with 64 sequences is some two kilobytes.
MAX_SECONDS = 60.0
MAX_STEPS = 4_096
MAX_SEQUENCE_STEPS = 65_536

# So many are packed together: one at a time, each would find the way there gone from the processor's caches.
STEPS_AT_ONCE = 32

# One process, the engine's; a thread for each model, as their steps never overlap but are easier to read apart.
_ENGINE = 1


_ENCODER = msgspec.msgpack.Encoder()
_DECODER = msgspec.msgpack.Decoder(StepStats)


class _Kept(NamedTuple):
    """A step packed: as objects, the sequences of some thousand steps would be looked through at every collection."""

    started_at: float
    ended_at: float
    num_sequences: int
    packed: bytes


class Timeline:
    """A Listener that keeps each model's last steps."""

    def __init__(self, models: Sequence[str]) -> None:
        self._steps: dict[str, deque[_Kept]] = {model: deque() for model in models}
        self._num_sequence_steps = dict.fromkeys(models, 0)
        self._unpacked: list[tuple[str, StepStats]] = []

    def recent(self, model: str, seconds: float) -> list[StepStats]:
        """The steps that began within so many seconds before the last one ended, oldest first."""
        self._pack_steps()
        steps = self._steps[model]
        if not steps:
            return []
        since = steps[-1].ended_at - seconds
        return [_DECODER.decode(step.packed) for step in steps if step.started_at >= since]

    def on_step(self, model: str, stats: StepStats, timings: StepTimings) -> None:
        self._unpacked.append((model, stats))
        if len(self._unpacked) == STEPS_AT_ONCE:
            self._pack_steps()

    def _pack_steps(self) -> None:
        for model, stats in self._unpacked:
            self._keep(model, stats)
        self._unpacked.clear()

    def _keep(self, model: str, stats: StepStats) -> None:
        steps = self._steps[model]
        steps.append(_Kept(stats.started_at, _ended_at(stats), len(stats.sequences), _ENCODER.encode(stats)))
        self._num_sequence_steps[model] += len(stats.sequences)
        since = steps[-1].ended_at - MAX_SECONDS
        while len(steps) > 1 and (
            steps[0].started_at < since
            or len(steps) > MAX_STEPS
            or self._num_sequence_steps[model] > MAX_SEQUENCE_STEPS
        ):
            self._num_sequence_steps[model] -= steps.popleft().num_sequences

    def on_rejected(self, model: str, reason: Rejection) -> None:
        """Not shown."""

    def on_started(self, model: str, num_sequences: int) -> None:
        """Not shown."""

    def on_finished(self, record: SequenceRecord) -> None:
        """Not shown."""

    def on_request_finished(self, record: RequestRecord) -> None:
        """Not shown."""

    def on_engine_ready(self) -> None:
        """Not shown."""

    def on_engine_lost(self) -> None:
        """What it did stays of interest."""


class TraceEvent(Struct):
    """One entry of a trace."""

    name: str
    ph: Literal["X", "C", "M"]
    ts: int  # microseconds of the engine's monotonic clock
    pid: int
    tid: int
    dur: int | UnsetType = UNSET
    args: dict[str, object] | UnsetType = UNSET


@dataclass(frozen=True)
class View:
    """Who is looking: sequences whose salt begins with `salt_prefix` are told of one by one.

    Those without an origin, which the engine made itself (beams, negative prompts) or which are long gone, are told of
    only to who owns everything.
    """

    find_origin: Callable[[int], Origin | None]
    salt_prefix: str

    def owns(self, origin: Origin | None) -> bool:
        return ("" if origin is None else origin.salt).startswith(self.salt_prefix)


def trace_events(model: str, thread: int, steps: Sequence[StepStats], view: View) -> Iterator[list[TraceEvent]]:
    """Names first, then the events of each step, ordered by time, parents before what they contain."""
    yield [
        TraceEvent("process_name", "M", 0, _ENGINE, thread, args={"name": "engine"}),
        TraceEvent("thread_name", "M", 0, _ENGINE, thread, args={"name": f"model {model}"}),
    ]
    for step in steps:
        yield _step_events(step, thread, view)


def _step_events(step: StepStats, thread: int, view: View) -> list[TraceEvent]:
    """The step, its stages within it, and the gauges as it left them."""
    start, scheduled, drafted, forwarding, sampling, end = _moments(step)
    events = [TraceEvent("step", "X", start, _ENGINE, thread, end - start, _describe(step, view))]
    for name, began, ended in (
        ("schedule", start, scheduled),
        ("draft", scheduled, drafted),
        ("forward", forwarding, sampling),
        ("sample", sampling, end),
    ):
        if ended > began:  # a viewer would nest what begins at the same moment in a slice of no length
            events.append(TraceEvent(name, "X", began, _ENGINE, thread, ended - began))
    gauges: dict[str, dict[str, object]] = {
        "sequences": {"running": step.num_running, "waiting": step.num_waiting},
        "blocks": _blocks(step),
    }
    return events + [TraceEvent(name, "C", end, _ENGINE, thread, args=args) for name, args in gauges.items()]


def _moments(step: StepStats) -> list[int]:
    """In microseconds, none before the last: start, scheduled, drafted, forward begins, sampling begins, end.

    Between drafting and the forward pass the engine builds the model's inputs.
    """
    start, end = step.started_at, _ended_at(step)
    scheduled = start + step.schedule_seconds
    sampling = end - step.sample_seconds
    moments = (start, scheduled, scheduled + step.draft_seconds, sampling - step.forward_seconds, sampling, end)
    # Sums of rounded parts may overshoot the whole by a hair.
    return [min(moment, _microseconds(end)) for moment in accumulate(map(_microseconds, moments), max)]


def _describe(step: StepStats, view: View) -> dict[str, object]:
    own: list[dict[str, object]] = []
    others: list[SequenceStep] = []
    for sequence in step.sequences:
        origin = view.find_origin(sequence.id)
        if view.owns(origin):
            own.append(_describe_own(sequence, origin))
        else:
            others.append(sequence)
    return {
        "sequences": own,
        "others": _describe_others(others),
        "passes": step.num_passes,
        "preemptions": step.num_preemptions,
        "blocks": _blocks(step),
    }


def _describe_own(sequence: SequenceStep, origin: Origin | None) -> dict[str, object]:
    return {
        "id": origin.answer_id if origin else None,
        "index": origin.index if origin else None,
        "prompt_tokens": sequence.num_prompt_tokens,
        "decode_tokens": sequence.num_decode_tokens,
        "draft_tokens": sequence.num_draft_tokens,
        "accepted_tokens": sequence.num_accepted_tokens,
    }


def _describe_others(sequences: Sequence[SequenceStep]) -> dict[str, object]:
    """Their load and no more. What was accepted of their drafts would tell how predictable their text is."""
    return {
        "sequences": len(sequences),
        "prompt_tokens": sum(sequence.num_prompt_tokens for sequence in sequences),
        "decode_tokens": sum(sequence.num_decode_tokens for sequence in sequences),
    }


def _blocks(step: StepStats) -> dict[str, object]:
    free, cached = step.num_free_blocks, step.num_cached_blocks
    return {"free": free, "cached": cached, "referenced": step.num_blocks - free - cached}


def _ended_at(step: StepStats) -> float:
    return step.started_at + step.duration_seconds


def _microseconds(seconds: float) -> int:
    return round(seconds * 1e6)
