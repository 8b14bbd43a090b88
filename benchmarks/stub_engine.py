"""An engine process without a model, to measure what is around it: one token for every sequence in every step.

As a server: python -m benchmarks.stub_engine STEPS_PER_SECOND FLAGS... starts `minigpt-serve FLAGS...` over it.
Uses only what every version of the server has, so that `benchmarks.against` can run it in an older tree.
"""

import sys
import time
from collections.abc import Iterable

from server.engine.inspection import Inspection
from server.engine.types import (
    EngineInfo,
    SequenceOutput,
    SequenceRequest,
    SequenceStep,
    StepOutput,
    StepStats,
)
from server.engine_loop import ignore_signals, inherited_socket, run

# Ids that are text in every vocabulary of pairs (those below are bytes), and exist in the smallest.
FIRST_TOKEN, NUM_TOKENS = 300, 700
INFO = EngineInfo(
    vocab_size=1024, context_length=100_000, eos_token_ids=(), num_parameters=1, dtype="-", device="-", num_blocks=1
)


class StubCore:
    """Runs every sequence at once, `steps_per_second` times a second at most (0: without waiting)."""

    info = INFO

    def __init__(self, steps_per_second: float = 0.0) -> None:
        self._seconds = 1 / steps_per_second if steps_per_second else 0.0
        self._next_at = 0.0
        self._left: dict[int, int] = {}  # tokens to come
        self._scheduled_at: dict[int, float] = {}

    def add(self, request: SequenceRequest) -> None:
        self._left[request.id] = request.params.max_tokens
        self._scheduled_at[request.id] = time.monotonic()

    def abort(self, ids: Iterable[int]) -> None:
        for id_ in ids:
            self._left.pop(id_, None)

    def watch(self, descriptor: int) -> None:
        """Its steps are short."""

    def has_work(self) -> bool:
        return bool(self._left)

    def inspect(self, salt_prefix: str, limit: int) -> Inspection:
        return Inspection(1, 1, 0, 0, 0, (), 0, (), 0, ())

    def step(self) -> StepOutput:
        """The next step when its time has come."""
        started_at = time.monotonic()
        if self._seconds:
            self._next_at = max(self._next_at + self._seconds, started_at)
            time.sleep(self._next_at - started_at)
        outputs = tuple(self._advance(id_, left) for id_, left in list(self._left.items()))
        return StepOutput(outputs, self._stats(started_at, outputs))

    def _advance(self, id_: int, left: int) -> SequenceOutput:
        self._left[id_] = left - 1
        if left == 1:
            del self._left[id_]
        token = FIRST_TOKEN + (7 * left + 31 * id_) % NUM_TOKENS
        reason = "length" if left == 1 else None
        return SequenceOutput(id_, (token,), finish_reason=reason, scheduled_at=self._scheduled_at[id_])

    def _stats(self, started_at: float, outputs: tuple[SequenceOutput, ...]) -> StepStats:
        return StepStats(
            started_at=started_at,
            duration_seconds=time.monotonic() - started_at,
            schedule_seconds=0.0,
            draft_seconds=0.0,
            forward_seconds=0.0,
            sample_seconds=0.0,
            num_prompt_tokens=0,
            num_generated_tokens=len(outputs),
            num_draft_tokens=0,
            num_accepted_tokens=0,
            num_prefix_query_tokens=0,
            num_prefix_hit_tokens=0,
            num_preemptions=0,
            num_running=len(self._left),
            num_waiting=0,
            num_blocks=1,
            num_free_blocks=1,
            num_cached_blocks=0,
            sequences=tuple(SequenceStep(output.id, 0, 1, 0, 0) for output in outputs),
        )


def serve(steps_per_second: float, flags: list[str]) -> int:
    """The real server, with this module in the engine process's place."""
    from server import __main__ as composition_root

    command = (sys.executable, "-m", "benchmarks.stub_engine", "--engine", str(steps_per_second))
    composition_root.ENGINE_COMMAND = command
    return composition_root.main(flags)


def run_engine(steps_per_second: float, descriptor: int) -> int:
    """What the engine process does."""
    ignore_signals()
    return run(inherited_socket(descriptor), lambda configure: [StubCore(steps_per_second) for _ in configure.models])


if __name__ == "__main__":
    if sys.argv[1] == "--engine":
        sys.exit(run_engine(float(sys.argv[2]), int(sys.argv[3])))
    sys.exit(serve(float(sys.argv[1]), sys.argv[2:]))
