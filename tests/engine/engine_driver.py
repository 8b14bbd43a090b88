"""Drives an engine core to the end of its work and collects what each sequence got. Knows no model's insides."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import cast

from backends import new_choose, new_runner

from model.gpt import GPT
from model.paged import Span
from server.engine.block_pool import BLOCK_SIZE, BlockPool
from server.engine.core import EngineCore
from server.engine.parts import Parts
from server.engine.runner import Runner
from server.engine.scheduler import Scheduler
from server.engine.speculation import NoSpeculation, Speculator
from server.engine.types import (
    EngineInfo,
    FinishReason,
    SequenceOutput,
    SequenceRequest,
    StepOutput,
    StepStats,
    TokenLogprob,
)
from server.engine.verify import Choose

EOS = 0
MAX_STEPS = 20_000


@dataclass
class Result:
    """All that a sequence's outputs add up to, without times and cache hits: what must be a function of the request."""

    tokens: list[int] = field(default_factory=list)
    logprobs: list[TokenLogprob] = field(default_factory=list)
    prompt_logprobs: list[TokenLogprob] = field(default_factory=list)
    finish_reason: FinishReason | None = None
    stop_token: int | None = None

    def add(self, output: SequenceOutput) -> None:
        assert self.finish_reason is None, f"sequence {output.id} has an output after its last one"
        self.tokens += output.tokens
        self.logprobs += output.logprobs
        self.prompt_logprobs += output.prompt_logprobs
        self.finish_reason, self.stop_token = output.finish_reason, output.stop_token


@dataclass
class Run:
    """What a core gave, per sequence and per step."""

    results: dict[int, Result] = field(default_factory=dict)
    outputs: list[SequenceOutput] = field(default_factory=list)
    stats: list[StepStats] = field(default_factory=list)

    def add(self, step: StepOutput) -> None:
        self.stats.append(step.stats)
        for output in step.outputs:
            self.outputs.append(output)
            self.results.setdefault(output.id, Result()).add(output)

    def cached_tokens(self, id_: int) -> int:
        return next(output.num_cached_tokens for output in self.outputs if output.id == id_)


# Told the step about to run; may add, abort or preempt.
Disturbance = Callable[[EngineCore, int], None]


def leave_alone(core: EngineCore, step: int) -> None:
    """The disturbance that is none."""


class Ticks:
    """A clock that moves by one second whenever it is read."""

    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        self.now += 1.0
        return self.now


def engine_core(
    model: GPT,
    num_blocks: int = 400,
    max_running: int = 64,
    max_step_tokens: int = 512,
    eos: tuple[int, ...] = (EOS,),
    speculator: Speculator | None = None,
    choose: Choose | None = None,
) -> EngineCore:
    config = model.config
    info = engine_info(config.vocab_size, min(config.context_length, num_blocks * BLOCK_SIZE), num_blocks, eos)
    clock = Ticks()
    scheduler = Scheduler(BlockPool(num_blocks), max_running, max_step_tokens)
    # One block more than the pool's, for `holds_only_finite`.
    parts = Parts(speculator or NoSpeculation(), choose=choose or new_choose())
    return EngineCore(info, new_runner(model, num_blocks + 1, clock), scheduler, clock, parts)


def engine_info(vocab_size: int, context_length: int, num_blocks: int, eos: tuple[int, ...] = (EOS,)) -> EngineInfo:
    return EngineInfo(vocab_size, context_length, eos, 0, "", "cpu", num_blocks)


def core_on(runner: object, info: EngineInfo, limits: tuple[int, int]) -> EngineCore:
    """A core over anything that runs like a Runner; `limits` are max_running and max_step_tokens."""
    return EngineCore(info, cast(Runner, runner), Scheduler(BlockPool(info.num_blocks), *limits), Ticks())


def drain(core: EngineCore, disturb: Disturbance = leave_alone, more_until: int = 0) -> Run:
    """Step until there is no work left (and `more_until` steps are over), checking the pool after every step."""
    run = Run()
    for step in range(MAX_STEPS):
        disturb(core, step)
        if not core.has_work():
            if step >= more_until:
                return run
            continue
        run.add(core.step())
        core.scheduler.pool.check()
    raise AssertionError("the engine makes no progress")


def decode(core: EngineCore, requests: Iterable[SequenceRequest], disturb: Disturbance = leave_alone) -> Run:
    """Everything added at once."""
    for request in requests:
        core.add(request)
    return drain(core, disturb)


def decode_arriving(core: EngineCore, arrivals: Mapping[int, Sequence[SequenceRequest]]) -> Run:
    """Requests added before the steps they are listed under."""

    def arrive(core: EngineCore, step: int) -> None:
        for request in arrivals.get(step, ()):
            core.add(request)

    return drain(core, arrive, more_until=max(arrivals) + 1)


def holds_only_finite(core: EngineCore) -> bool:
    """Whether no block of the pool holds a key or a value that is not a number: a token that attends to it would tell.

    For models without a sliding window. The token that asks writes to a block of its own, behind the pool's.
    """
    runner, num_blocks = core._runner, core.info.num_blocks
    at_once = runner.config.context_length // BLOCK_SIZE - 1
    for first in range(0, num_blocks, at_once):
        asked = range(first, min(first + at_once, num_blocks))
        probe = Span(len(asked) * BLOCK_SIZE, 1, [*asked, num_blocks])
        if not runner.run([1], [probe], []).is_all_finite:
            return False
    return True


def preempt(core: EngineCore, index: int = -1) -> None:
    """Take the running sequence at `index` (the newest by default) off its blocks, as the scheduler does."""
    scheduler = core.scheduler
    if scheduler.running:
        sequence = scheduler.running.pop(index)
        scheduler.pool.release(sequence.forget_cache())
        scheduler.waiting.appendleft(sequence)
