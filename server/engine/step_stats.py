"""One step in numbers, read off its schedule, its outputs and the pool it left behind. Keeps no counters."""

from collections.abc import Mapping, Sequence
from typing import NamedTuple

from server.engine.scheduler import Chunk, Schedule, Scheduler
from server.engine.types import SequenceOutput, SequenceStep, StepStats


class StepTimes(NamedTuple):
    """When the stages of a step began and the last one ended, in seconds of the engine's clock."""

    schedule: float
    draft: float
    run: float
    decide: float
    end: float
    forward_seconds: float  # the part of `run` spent in the model
    num_passes: int = 1  # through it


def step_stats(
    schedule: Schedule, scheduler: Scheduler, outputs: Sequence[SequenceOutput], times: StepTimes
) -> StepStats:
    """`scheduler` as the step left it."""
    chunks, num_preemptions, num_prefix_query_tokens, num_prefix_hit_tokens = schedule
    drafted = {output.id: output for output in outputs if output.num_drafted}
    sequences = tuple([_sequence_step(chunk, drafted) for chunk in chunks])
    pool = scheduler.pool
    return StepStats(  # by position, as names cost as much again
        times.schedule,
        times.end - times.schedule,
        times.draft - times.schedule,
        times.run - times.draft,
        times.forward_seconds,
        times.end - times.decide,
        sum([sequence.num_prompt_tokens for sequence in sequences]),
        sum([len(output.tokens) for output in outputs]),
        sum([output.num_drafted for output in drafted.values()]),
        sum([output.num_accepted for output in drafted.values()]),
        num_prefix_query_tokens,
        num_prefix_hit_tokens,
        num_preemptions,
        len(scheduler.running),
        len(scheduler.waiting),
        pool.num_blocks,
        pool.num_free,
        pool.num_cached,
        sequences,
        num_passes=times.num_passes,
    )


def _sequence_step(chunk: Chunk, drafted: Mapping[int, SequenceOutput]) -> SequenceStep:
    sequence, start, length, _ = chunk
    id_ = sequence.request.id
    if start >= sequence.num_prompt and not drafted:  # mostly; the calls below cost as much again
        return SequenceStep(id_, 0, length, 0, 0)
    # Computed tokens are prompt tokens unless they are outputs fed back; a replay computes both again.
    num_prompt = min(max(0, sequence.num_prompt - start), length)
    output = drafted.get(id_)
    num_drafted, num_accepted = (0, 0) if output is None else (output.num_drafted, output.num_accepted)
    return SequenceStep(id_, num_prompt, length - num_prompt, num_drafted, num_accepted)
