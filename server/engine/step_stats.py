"""One step in numbers, read off its schedule, its outputs and the pool it left behind. Keeps no counters."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from server.engine.scheduler import Chunk, Schedule, Scheduler
from server.engine.types import SequenceOutput, SequenceStep, StepStats


@dataclass(frozen=True)
class StepTimes:
    """When the stages of a step began and the last one ended, in seconds of the engine's clock."""

    schedule: float
    draft: float
    run: float
    decide: float
    end: float
    forward_seconds: float  # the part of `run` spent in the model


def step_stats(
    schedule: Schedule, scheduler: Scheduler, outputs: Sequence[SequenceOutput], times: StepTimes
) -> StepStats:
    """`scheduler` as the step left it."""
    drafted = {output.id: output for output in outputs if output.num_drafted}
    sequences = tuple([_sequence_step(chunk, drafted) for chunk in schedule.chunks])
    return StepStats(
        started_at=times.schedule,
        duration_seconds=times.end - times.schedule,
        schedule_seconds=times.draft - times.schedule,
        draft_seconds=times.run - times.draft,
        forward_seconds=times.forward_seconds,
        sample_seconds=times.end - times.decide,
        num_prompt_tokens=sum([sequence.num_prompt_tokens for sequence in sequences]),
        num_generated_tokens=sum([len(output.tokens) for output in outputs]),
        num_draft_tokens=sum([output.num_drafted for output in drafted.values()]),
        num_accepted_tokens=sum([output.num_accepted for output in drafted.values()]),
        num_prefix_query_tokens=schedule.num_prefix_query_tokens,
        num_prefix_hit_tokens=schedule.num_prefix_hit_tokens,
        num_preemptions=schedule.num_preemptions,
        num_running=len(scheduler.running),
        num_waiting=len(scheduler.waiting),
        num_blocks=scheduler.pool.num_blocks,
        num_free_blocks=scheduler.pool.num_free,
        num_cached_blocks=scheduler.pool.num_cached,
        sequences=sequences,
    )


def _sequence_step(chunk: Chunk, drafted: Mapping[int, SequenceOutput]) -> SequenceStep:
    sequence, start, length, _ = chunk
    id_ = sequence.request.id
    # Computed tokens are prompt tokens unless they are outputs fed back; a replay computes both again.
    num_prompt = min(max(0, sequence.num_prompt - start), length)
    if id_ not in drafted:
        return SequenceStep(id_, num_prompt, length - num_prompt, 0, 0)
    output = drafted[id_]
    return SequenceStep(id_, num_prompt, length - num_prompt, output.num_drafted, output.num_accepted)
