"""An engine core whose tokens are arithmetic on the prompt, so that tests can say what must come without a model."""

import time
from collections.abc import Iterable, Sequence

from server.engine.inspection import Inspection
from server.engine.params import SamplingParams
from server.engine.types import EngineInfo, SequenceOutput, SequenceRequest, StepOutput, StepStats
from server.protocol import StepReport

VOCAB_SIZE = 1000
CRASH_TOKEN = 900  # in a prompt: the step that runs it raises
REFUSED_TOKEN = 901  # in a prompt: `add` raises ValueError
NUM_BLOCKS = 64
INFO = EngineInfo(
    vocab_size=VOCAB_SIZE,
    context_length=100_000,
    eos_token_ids=(0,),
    num_parameters=1,
    dtype="float32",
    device="cpu",
    num_blocks=NUM_BLOCKS,
)


def request(prompt: Sequence[int], max_tokens: int, id_: int = 0) -> SequenceRequest:
    return SequenceRequest(id_, tuple(prompt), SamplingParams(max_tokens=max_tokens))


def token_at(prompt: Sequence[int], position: int) -> int:
    """Always a character of `fake_server`'s tokenizer: below 257 it has the end of text and single bytes."""
    return 300 + (sum(prompt) * 31 + position * 7) % 600


def expected_tokens(prompt: Sequence[int], max_tokens: int) -> list[int]:
    """All that a sequence must get."""
    return [token_at(prompt, position) for position in range(max_tokens)]


def outputs_of(report: StepReport) -> list[SequenceOutput]:
    """All that a report holds, as the core made it."""
    plain = report.plain
    columns = zip(plain.ids, plain.tokens, plain.num_cached_tokens, plain.scheduled_at, strict=True)
    as_made = [
        SequenceOutput(id_, tokens, num_cached_tokens=num_cached, scheduled_at=scheduled_at)
        for id_, tokens, num_cached, scheduled_at in columns
    ]
    return [*as_made, *report.step.outputs]


class FakeCore:
    """One token per running sequence and step; one block per sequence."""

    def __init__(self, step_seconds: float = 0.0, max_running: int = 8, tokens_per_step: int = 1) -> None:
        self.info = INFO
        self.num_steps = 0
        self.watched = -1
        self._step_seconds = step_seconds
        self._max_running = max_running
        self._tokens_per_step = tokens_per_step
        self._waiting: dict[int, SequenceRequest] = {}
        self._running: dict[int, int] = {}  # to the number of tokens made
        self._requests: dict[int, SequenceRequest] = {}
        self._scheduled_at: dict[int, float] = {}
        self._aborted: list[int] = []

    def add(self, request: SequenceRequest) -> None:
        if REFUSED_TOKEN in request.prompt:
            raise ValueError("the prompt holds the refused token")
        self._waiting[request.id] = request
        self._requests[request.id] = request

    def abort(self, ids: Iterable[int]) -> None:
        for id_ in ids:
            if id_ in self._requests:
                self._forget(id_)
                self._aborted.append(id_)

    def watch(self, descriptor: int) -> None:
        self.watched = descriptor

    def has_work(self) -> bool:
        return bool(self._requests or self._aborted)

    def step(self) -> StepOutput:
        started_at = time.monotonic()
        self.num_steps += 1
        outputs = [SequenceOutput(id_, finish_reason="abort") for id_ in self._aborted]
        self._aborted = []
        while self._waiting and len(self._running) < self._max_running:
            id_ = next(iter(self._waiting))
            started = self._waiting.pop(id_)
            if CRASH_TOKEN in started.prompt:
                raise RuntimeError("the magic token crashed the core")
            self._scheduled_at[id_] = started_at
            self._running[id_] = 0
        outputs += [self._advance(id_) for id_ in list(self._running)]
        if self._step_seconds:
            time.sleep(self._step_seconds)
        num_generated = sum(len(output.tokens) for output in outputs)
        return StepOutput(tuple(outputs), self._stats(started_at, num_generated))

    def inspect(self, salt_prefix: str, limit: int) -> Inspection:
        num_running = len(self._running)
        return Inspection(NUM_BLOCKS, NUM_BLOCKS - num_running, 0, num_running, 0, (), num_running, (), 0, ())

    def _advance(self, id_: int) -> SequenceOutput:
        request, start = self._requests[id_], self._running[id_]
        end = min(start + self._tokens_per_step, request.params.max_tokens)
        tokens = tuple(token_at(request.prompt, position) for position in range(start, end))
        self._running[id_] = end
        scheduled_at = self._scheduled_at[id_]
        is_done = end == request.params.max_tokens
        if is_done:
            self._forget(id_)
        return SequenceOutput(id_, tokens, finish_reason="length" if is_done else None, scheduled_at=scheduled_at)

    def _forget(self, id_: int) -> None:
        del self._requests[id_]
        self._waiting.pop(id_, None)
        self._running.pop(id_, None)
        self._scheduled_at.pop(id_, None)

    def _stats(self, started_at: float, num_generated: int) -> StepStats:
        return StepStats(
            started_at=started_at,
            duration_seconds=time.monotonic() - started_at,
            schedule_seconds=0.0,
            draft_seconds=0.0,
            forward_seconds=0.0,
            sample_seconds=0.0,
            num_prompt_tokens=0,
            num_generated_tokens=num_generated,
            num_draft_tokens=0,
            num_accepted_tokens=0,
            num_prefix_query_tokens=0,
            num_prefix_hit_tokens=0,
            num_preemptions=0,
            num_running=len(self._running),
            num_waiting=len(self._waiting),
            num_blocks=NUM_BLOCKS,
            num_free_blocks=NUM_BLOCKS - len(self._running),
            num_cached_blocks=0,
        )
