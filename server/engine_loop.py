"""The engine process's loop: take what was asked, step a core, report, again. Knows no torch and no checkpoint.

Two rules keep it live. It never blocks on the HTTP side while there is work: what the socket does not take is kept and
sent later. And it reads commands before every step, so that both sides writing at once cannot lock each other.
"""

import contextlib
import gc
import logging
import os
import select
import signal
import socket
from collections import deque
from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from typing import NoReturn, Protocol

from server.engine.inspection import Inspection
from server.engine.types import EngineInfo, SequenceOutput, SequenceRequest, StepOutput, StepStats
from server.errors import CannotStart, Disconnected, FrameTooLarge
from server.framing import MAX_FRAME_BYTES, FrameReader
from server.logs import Event
from server.protocol import (
    Commands,
    Configure,
    Fatal,
    FromEngine,
    Inspect,
    Inspected,
    Ready,
    Refused,
    StepReport,
    ToEngine,
    decode_to_engine,
    encode,
)

EXIT_CRASHED = 1
EXIT_CANNOT_START = 2
RECEIVE_BYTES = 2**18
# With this much unsent the HTTP side has stopped reading altogether; stepping on would only fill memory.
MAX_UNSENT_BYTES = MAX_FRAME_BYTES

logger = logging.getLogger(__name__)


class Core(Protocol):
    """The part of EngineCore the loop uses."""

    @property
    def info(self) -> EngineInfo: ...

    def add(self, request: SequenceRequest) -> None:
        """Raises ValueError for a sequence that cannot be run."""
        ...

    def abort(self, ids: Iterable[int]) -> None:
        """Ends those it knows; ignores the others."""
        ...

    def has_work(self) -> bool: ...

    def watch(self, descriptor: int) -> None:
        """Steps need not go on for long once the descriptor has something to read."""
        ...

    def step(self) -> StepOutput: ...

    def inspect(self, salt_prefix: str, limit: int) -> Inspection: ...


Load = Callable[[Configure], Sequence[Core]]


class Link:
    """The engine's end of the socket: messages out without ever blocking, messages in without waiting for them."""

    def __init__(self, sock: socket.socket) -> None:
        sock.setblocking(False)
        self._socket = sock
        self._reader = FrameReader()
        self._inbox: deque[ToEngine] = deque()
        self._unsent: deque[memoryview] = deque()
        self._num_unsent_bytes = 0

    @property
    def descriptor(self) -> int:
        """Of the socket."""
        return self._socket.fileno()

    @property
    def is_clogged(self) -> bool:
        return self._num_unsent_bytes > MAX_UNSENT_BYTES

    def send(self, message: FromEngine) -> None:
        """Send, or keep for later what the socket does not take now. Raises FrameTooLarge, with nothing sent."""
        data = memoryview(encode(message))
        self._unsent.append(data)
        self._num_unsent_bytes += len(data)
        self.flush()

    def flush(self) -> None:
        """Push out as much as the socket takes. Raises Disconnected."""
        while self._unsent:
            data = self._unsent.popleft()
            num_sent = self._write(data)
            self._num_unsent_bytes -= num_sent
            if num_sent < len(data):
                self._unsent.appendleft(data[num_sent:])
                return

    def receive(self) -> list[ToEngine]:
        """Every message that has arrived. Raises Disconnected, FrameTooLarge, msgspec.DecodeError."""
        while data := self._read():
            self._inbox.extend(decode_to_engine(payload) for payload in self._reader.feed(data))
        messages = list(self._inbox)
        self._inbox.clear()
        return messages

    def wait(self) -> None:
        """Sleep until there is something to read, or room to write what is unsent."""
        self._poll(select.POLLIN | select.POLLOUT if self._unsent else select.POLLIN)

    def drain(self) -> None:
        """Wait until everything is out. For last words only. Raises Disconnected."""
        while self._unsent:
            self._poll(select.POLLOUT)
            self.flush()

    def _poll(self, events: int) -> None:
        # Not select(): a restarted child of a server with a thousand connections inherits a descriptor above its limit.
        poll = select.poll()
        poll.register(self._socket, events)
        poll.poll()

    def _write(self, data: memoryview) -> int:
        try:
            return self._socket.send(data)
        except BlockingIOError:
            return 0
        except ConnectionError as error:
            raise Disconnected from error

    def _read(self) -> bytes:
        """What is there now; empty when nothing is."""
        try:
            data = self._socket.recv(RECEIVE_BYTES)
        except BlockingIOError:
            return b""
        except ConnectionError as error:
            raise Disconnected from error
        if not data:
            raise Disconnected
        return data


def ignore_signals() -> None:
    """The HTTP process decides when to stop: a Ctrl-C in the terminal must not cut the streams it is draining."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_IGN)


def inherited_socket(descriptor: int) -> socket.socket:
    """The socket the parent passed on; kept from our own children, or its closing would go unnoticed."""
    os.set_inheritable(descriptor, False)
    return socket.socket(fileno=descriptor)


def run(sock: socket.socket, load: Load) -> int:
    """Serve the HTTP process at the other end of `sock` until it goes; returns the exit code.

    `load` turns the configuration into one core per model; it raises CannotStart for what another start would not mend.
    """
    link = Link(sock)
    try:
        _serve(link, load)
    except Disconnected:
        return 0
    except CannotStart as error:
        with contextlib.suppress(Disconnected):
            link.send(Fatal(str(error)))
            link.drain()
        return EXIT_CANNOT_START
    except Exception:
        # The one broad except of the server. A core that raised may have torn its own books, so nothing it says can
        # be trusted any more: leave a traceback and let the supervisor start afresh.
        logger.exception(Event("engine_crashed"))
        return EXIT_CRASHED


def _serve(link: Link, load: Load) -> NoReturn:
    """Configure, then step for ever. Left by an exception only: Disconnected when all is well."""
    cores = load(_first_message(link))
    for core in cores:
        core.watch(link.descriptor)
    # What loading made lives as long as the process; without this every full collection would walk all of it.
    gc.collect()
    gc.freeze()
    link.send(Ready(tuple(core.info for core in cores)))
    turn = 0
    while True:
        link.flush()
        for message in link.receive():
            _obey(message, cores, link)
        number = _next_with_work(cores, turn)
        if number is None or link.is_clogged:
            link.wait()
        else:
            _report(link, number, cores[number], cores[number].step())
            turn = number + 1


def _first_message(link: Link) -> Configure:
    while not (messages := link.receive()):
        link.wait()
    (configure,) = messages
    assert isinstance(configure, Configure)
    return configure


def _next_with_work(cores: Sequence[Core], turn: int) -> int | None:
    """The first core with work, from `turn` on and around: no model waits for more than one step of each other."""
    for offset in range(len(cores)):
        number = (turn + offset) % len(cores)
        if cores[number].has_work():
            return number
    return None


def _report(link: Link, number: int, core: Core, step: StepOutput) -> None:
    """Send what a step has to say, in as many reports as it takes. Who has more to say than one holds ends, alone."""
    try:
        link.send(StepReport.of(number, step))
    except FrameTooLarge as error:
        if len(step.outputs) > 1:
            middle = len(step.outputs) // 2
            _report(link, number, core, replace(step, outputs=step.outputs[:middle]))
            _report(link, number, core, StepOutput(step.outputs[middle:], _counted(step.stats)))
            return
        (output,) = step.outputs
        logger.error(Event("output_too_large", sequence=output.id, reason=str(error)))
        core.abort((output.id,))  # its last word after this one finds no reader
        link.send(StepReport(number, replace(step, outputs=(_too_large(output),))))


def _counted(stats: StepStats) -> StepStats:
    """For further reports of a step: the gauges again, and nothing that would count twice."""
    return StepStats(
        started_at=stats.started_at,
        duration_seconds=0.0,
        schedule_seconds=0.0,
        draft_seconds=0.0,
        forward_seconds=0.0,
        sample_seconds=0.0,
        num_prompt_tokens=0,
        num_generated_tokens=0,
        num_draft_tokens=0,
        num_accepted_tokens=0,
        num_prefix_query_tokens=0,
        num_prefix_hit_tokens=0,
        num_preemptions=0,
        num_running=stats.num_running,
        num_waiting=stats.num_waiting,
        num_blocks=stats.num_blocks,
        num_free_blocks=stats.num_free_blocks,
        num_cached_blocks=stats.num_cached_blocks,
        has_draft_model_failed=stats.has_draft_model_failed,
    )


def _too_large(output: SequenceOutput) -> SequenceOutput:
    """The end of a sequence whose output does not fit in a message."""
    return SequenceOutput(
        output.id,
        finish_reason="error",
        num_cached_tokens=output.num_cached_tokens,
        scheduled_at=output.scheduled_at,
        error="A single step gave this sequence more log-probabilities or traces than the server can pass on.",
    )


def _obey(message: ToEngine, cores: Sequence[Core], link: Link) -> None:
    if isinstance(message, Inspect):
        inspection = cores[message.model].inspect(message.salt_prefix, message.limit)
        link.send(Inspected(message.ticket, inspection))
        return
    assert isinstance(message, Commands)
    refused = []
    for addition in message.add:
        try:
            cores[addition.model].add(addition.sequence)
        except ValueError as error:
            logger.warning(Event("sequence_refused", sequence=addition.sequence.id, reason=str(error)))
            refused.append(addition.sequence.id)
    if message.abort:
        for core in cores:
            core.abort(message.abort)
    if refused:
        link.send(Refused(tuple(refused)))
