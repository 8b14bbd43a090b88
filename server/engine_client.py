"""The asyncio side of the engine: admits requests, routes each step's outputs to them, and accounts for every one.

It is told when an engine is there and how to send to it; it knows no processes, sockets or HTTP.
"""

import asyncio
import logging
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace

from server.admission import Admission, QueueLimits
from server.engine.inspection import Inspection
from server.engine.types import EngineInfo, SequenceOutput, SequenceRequest
from server.errors import Draining, EngineUnavailable, FrameTooLarge, QueueFull
from server.generation import Generation, OpenSequence
from server.inspections import OpenInspections
from server.logs import Event
from server.origins import Origin, Origins
from server.protocol import Addition, Commands, Inspect, Inspected, PlainTokens, Refused, StepReport
from server.records import Listener, Outcome, Rejection
from server.timing import StepTimer, request_record, sequence_record

# A message must stay far below the largest frame: at five bytes a token this is a tenth of it.
MAX_TOKENS_PER_MESSAGE = 1_000_000

logger = logging.getLogger(__name__)


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
        self._send: Callable[[Commands | Inspect], None] | None = None
        self._inspections = OpenInspections()
        self._origins = Origins()
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

    def check_admission(self, model: str, num_sequences: int) -> None:
        """Raise now, and count it as a rejection, if `open` would refuse so many sequences. Nothing is admitted."""
        number = self._names.index(model)
        if self._draining:
            self._report_rejection(number, "draining")
            raise Draining("the server is shutting down")
        if self._send is None:
            self._report_rejection(number, "unavailable")
            raise EngineUnavailable("the engine is " + ("restarting" if self._infos else "still loading"))
        try:
            self._admissions[number].check(num_sequences)
        except QueueFull:
            self._report_rejection(number, "queue_full")
            raise

    def open(self, model: str, sequences: Sequence[SequenceRequest], answer_id: str = "") -> Generation:
        """Admit at least one sequence, with ids 0..len-1, for a served model.

        `answer_id` is what the client's answer is called. Raises QueueFull, EngineUnavailable, Draining, or BadRequest
        for more sequences than could ever be admitted.
        """
        assert sequences
        assert [sequence.id for sequence in sequences] == list(range(len(sequences)))
        self.check_admission(model, len(sequences))
        number = self._names.index(model)
        self._admissions[number].enter(len(sequences))
        generation = Generation(self._end_early, self._forget, self._clock())
        self._generations.add(generation)
        self._idle.clear()
        for request in sequences:
            wire_id = self._enter(number, generation, request)
            self._origins.note(wire_id, Origin(answer_id, request.id, request.cache_salt))
        for listener in self._listeners:
            listener.on_started(model, len(sequences))
        return generation

    async def inspect(self, model: str, salt_prefix: str, limit: int) -> Inspection:
        """Who holds which block of a served model.

        Raises EngineUnavailable when there is no engine or no answer, QueueFull when too many ask.
        """
        if self._send is None:
            raise EngineUnavailable("the engine is " + ("restarting" if self._infos else "still loading"))
        return await self._inspections.ask(Inspect(0, self._names.index(model), salt_prefix, limit), self._send)

    def find_origin(self, id_: int) -> Origin | None:
        """Which answer one of the engine's sequences is part of; None for its own, and for those long gone."""
        return self._origins.find(id_)

    def connect(self, infos: Sequence[EngineInfo], send: Callable[[Commands | Inspect], None]) -> None:
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
        self._inspections.fail(reason)
        for sequence in list(self._sequences.values()):
            sequence.generation.fail(reason)
            self._finish(sequence, "error")
        for listener in self._listeners:
            listener.on_engine_lost()

    def receive(self, message: StepReport | Refused | Inspected) -> None:
        """Route what the engine says."""
        match message:
            case Refused(ids):
                for wire_id in ids:
                    self._refuse(wire_id)
            case Inspected():
                self._inspections.answer(message)
            case StepReport(model, step, plain):
                timer = StepTimer(self._clock())
                self._take_plain(plain, timer)
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

    def _report_rejection(self, number: int, reason: Rejection) -> None:
        for listener in self._listeners:
            listener.on_rejected(self._names[number], reason)

    def _enter(self, number: int, generation: Generation, request: SequenceRequest) -> int:
        wire_id = self._next_id
        self._next_id += 1
        sequence = OpenSequence(
            wire_id, number, generation, request.id, len(request.prompt), arrived_at=generation.arrived_at
        )
        generation.join(sequence)
        self._sequences[wire_id] = sequence
        self._additions.append(Addition(number, replace(request, id=wire_id)))
        self._flush_soon()
        return wire_id

    def _take_plain(self, plain: PlainTokens, timer: StepTimer) -> None:
        """Pass on what says no more than tokens. As this is for every token of every stream, it notes times itself."""
        now, gaps = timer.now, timer.gaps
        columns = zip(plain.ids, plain.tokens, plain.num_cached_tokens, plain.scheduled_at, strict=True)
        for id_, tokens, num_cached, scheduled_at in columns:
            sequence = self._sequences.get(id_)
            if sequence is not None and sequence.first_token_at is not None:
                num_tokens = len(tokens)
                seconds = (now - sequence.last_token_at) / num_tokens
                gaps[seconds] = gaps.get(seconds, 0) + num_tokens
                sequence.last_token_at = now
                sequence.num_output_tokens += num_tokens
                num_taken = 0 if sequence.tap is None else sequence.tap(tokens)
                if num_taken < num_tokens:
                    sequence.generation.deliver(sequence.index, SequenceOutput(id_, tokens[num_taken:]))
            else:
                output = SequenceOutput(id_, tokens, num_cached_tokens=num_cached, scheduled_at=scheduled_at)
                self._take(output, timer)

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
        sequence.generation.deliver(sequence.index, output)
        if output.finish_reason is not None:
            self._finish(sequence, output.finish_reason)

    def _refuse(self, wire_id: int) -> None:
        """End a sequence that the engine cannot take."""
        self._take(SequenceOutput(wire_id, finish_reason="error"), StepTimer(self._clock()))

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
                self._send_split(batch, ())
                batch, num_tokens = [], len(addition.sequence.prompt)
            batch.append(addition)
        if batch or aborts:
            self._send_split(batch, aborts)

    def _send_split(self, additions: Sequence[Addition], aborts: tuple[int, ...]) -> None:
        """Send in as many messages as it takes. Prompts are not all that is long: whoever does not fit ends, alone."""
        if self._send is None:  # lost while an earlier message was being sent
            return
        try:
            self._send(Commands(tuple(additions), aborts))
        except FrameTooLarge:
            if len(additions) > 1:
                middle = len(additions) // 2
                self._send_split(additions[:middle], ())
                self._send_split(additions[middle:], aborts)
                return
            for addition in additions:
                logger.error(Event("sequence_too_large", id=addition.sequence.id))
                self._refuse(addition.sequence.id)
            if additions and aborts:
                self._send_split((), aborts)
