"""The asyncio side of the engine: admits requests, routes each step's outputs to them, and accounts for every one.

It is told when an engine is there and how to send to it; it knows no processes, sockets or HTTP.
"""

import asyncio
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace

from server.admission import Admission, QueueLimits
from server.engine.types import EngineInfo, SequenceOutput, SequenceRequest
from server.errors import Draining, EngineUnavailable, QueueFull
from server.generation import Generation, OpenSequence
from server.protocol import Addition, Commands, Refused, StepReport
from server.records import Listener, Outcome, Rejection
from server.timing import StepTimer, request_record, sequence_record

# A message must stay far below the largest frame: at five bytes a token this is a tenth of it.
MAX_TOKENS_PER_MESSAGE = 1_000_000


class EngineClient:
    """Implements the API's Engine. `models` are the served names, in the engine's order."""

    def __init__(
        self,
        models: Sequence[str],
        limits: QueueLimits,
        listeners: Sequence[Listener] = (),
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._names = tuple(models)
        self._admissions = [Admission(limits, clock) for _ in models]
        self._listeners = tuple(listeners)
        self._clock = clock
        self._infos: dict[str, EngineInfo] = {}
        self._send: Callable[[Commands], None] | None = None
        self._draining = False
        self._sequences: dict[int, OpenSequence] = {}
        self._generations: set[Generation] = set()
        self._was_ready = asyncio.Event()
        self._idle = asyncio.Event()
        self._idle.set()
        self._next_id = 0
        self._additions: list[Addition] = []
        self._aborts: list[int] = []
        self._flush_is_due = False

    def models(self) -> Mapping[str, EngineInfo]:
        """The last known, also while the engine restarts; empty until it was ready for the first time."""
        return self._infos

    def is_ready(self) -> bool:
        return self._send is not None and not self._draining

    def open(self, model: str, sequences: Sequence[SequenceRequest]) -> Generation:
        """Admit at least one sequence, with ids 0..len-1, for a served model.

        Raises QueueFull, EngineUnavailable, Draining, or BadRequest for more sequences than could ever be admitted.
        """
        assert sequences
        assert [sequence.id for sequence in sequences] == list(range(len(sequences)))
        number = self._names.index(model)
        self._admit(number, len(sequences))
        generation = Generation(self._end_early, self._forget, self._clock())
        self._generations.add(generation)
        self._idle.clear()
        for request in sequences:
            self._enter(number, generation, request)
        for listener in self._listeners:
            listener.on_started(model, len(sequences))
        return generation

    def connect(self, infos: Sequence[EngineInfo], send: Callable[[Commands], None]) -> None:
        """An engine is there, with nothing to do."""
        self._infos = dict(zip(self._names, infos, strict=True))
        self._send = send
        self._was_ready.set()
        for listener in self._listeners:
            listener.on_engine_ready()

    def disconnect(self, reason: str) -> None:
        """The engine is gone: whatever was open ends as an error."""
        self._send = None
        self._additions.clear()
        self._aborts.clear()
        for sequence in list(self._sequences.values()):
            sequence.generation.fail(reason)
            self._finish(sequence, "error")
        for listener in self._listeners:
            listener.on_engine_lost()

    def receive(self, message: StepReport | Refused) -> None:
        """Route what the engine says."""
        match message:
            case Refused(ids):
                for wire_id in ids:
                    self._take(SequenceOutput(wire_id, finish_reason="error"), StepTimer(self._clock()))
            case StepReport(model, step):
                timer = StepTimer(self._clock())
                for output in step.outputs:
                    self._take(output, timer)
                timings = timer.timings()
                for listener in self._listeners:
                    listener.on_step(self._names[model], step.stats, timings)

    def drain(self) -> None:
        """Refuse new work from now on; what is open goes on."""
        self._draining = True

    async def wait_until_ready(self) -> None:
        """Returns once an engine has been connected for the first time."""
        await self._was_ready.wait()

    async def wait_until_idle(self) -> None:
        """Returns once every generation has been closed by its reader."""
        await self._idle.wait()

    @property
    def num_open_requests(self) -> int:
        """Generations not closed yet."""
        return len(self._generations)

    def _admit(self, number: int, num_sequences: int) -> None:
        if self._draining:
            self._report_rejection(number, "draining")
            raise Draining("the server is shutting down")
        if self._send is None:
            self._report_rejection(number, "unavailable")
            raise EngineUnavailable("the engine is " + ("restarting" if self._infos else "still loading"))
        try:
            self._admissions[number].enter(num_sequences)
        except QueueFull:
            self._report_rejection(number, "queue_full")
            raise

    def _report_rejection(self, number: int, reason: Rejection) -> None:
        for listener in self._listeners:
            listener.on_rejected(self._names[number], reason)

    def _enter(self, number: int, generation: Generation, request: SequenceRequest) -> None:
        wire_id = self._next_id
        self._next_id += 1
        sequence = OpenSequence(
            wire_id, number, generation, request.id, len(request.prompt), arrived_at=generation.arrived_at
        )
        generation.join(sequence)
        self._sequences[wire_id] = sequence
        self._additions.append(Addition(number, replace(request, id=wire_id)))
        self._flush_soon()

    def _take(self, output: SequenceOutput, timer: StepTimer) -> None:
        """Pass one sequence's output on to its reader."""
        sequence = self._sequences.get(output.id)
        if sequence is None:
            return  # ended from this side while the step that made this was under way
        if sequence.scheduled_at is None and output.scheduled_at:
            timer.note_scheduled(sequence, output.scheduled_at)
            self._admissions[sequence.model].schedule()
        if output.tokens:
            timer.note_tokens(sequence, len(output.tokens))
        sequence.generation.deliver(_renumbered(output, sequence.index))
        if output.finish_reason is not None:
            self._finish(sequence, output.finish_reason)

    def _end_early(self, sequence: OpenSequence, outcome: Outcome) -> None:
        """The reader ends a sequence: it is accounted for at once, and the engine told with the next message."""
        self._finish(sequence, outcome)
        self._aborts.append(sequence.wire_id)
        self._flush_soon()

    def _finish(self, sequence: OpenSequence, outcome: Outcome) -> None:
        del self._sequences[sequence.wire_id]
        sequence.outcome = outcome
        now = self._clock()
        record = sequence_record(self._names[sequence.model], sequence, outcome, now)
        self._admissions[sequence.model].leave(was_scheduled=sequence.scheduled_at is not None)
        sequence.generation.finish_one()
        for listener in self._listeners:
            listener.on_finished(record)
        if sequence.generation.num_unfinished == 0:
            request = request_record(record.model, sequence.generation, now)
            for listener in self._listeners:
                listener.on_request_finished(request)

    def _forget(self, generation: Generation) -> None:
        self._generations.discard(generation)
        if not self._generations:
            self._idle.set()

    def _flush_soon(self) -> None:
        if not self._flush_is_due and self._send is not None:
            self._flush_is_due = True
            asyncio.get_running_loop().call_soon(self._flush)

    def _flush(self) -> None:
        """Send all that this turn of the loop asked for, in one message unless the prompts are enormous."""
        self._flush_is_due = False
        if self._send is None:
            return
        additions, self._additions = self._additions, []
        aborts, self._aborts = tuple(self._aborts), []
        batch: list[Addition] = []
        num_tokens = 0
        for addition in additions:
            num_tokens += len(addition.sequence.prompt)
            if batch and num_tokens > MAX_TOKENS_PER_MESSAGE:
                self._send(Commands(add=tuple(batch)))
                batch, num_tokens = [], len(addition.sequence.prompt)
            batch.append(addition)
        if batch or aborts:
            self._send(Commands(add=tuple(batch), abort=aborts))


def _renumbered(output: SequenceOutput, index: int) -> SequenceOutput:
    """As dataclasses.replace, at a quarter of its cost: this runs for every sequence in every step."""
    return SequenceOutput(
        index,
        output.tokens,
        output.logprobs,
        output.prompt_logprobs,
        output.finish_reason,
        output.stop_token,
        output.num_cached_tokens,
        output.scheduled_at,
    )
