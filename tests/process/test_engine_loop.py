"""The engine's loop, run in a thread against a socket: order, fairness, back-pressure, and how it ends."""

import socket
import threading
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import replace

import pytest
from fake_core import CRASH_TOKEN, INFO, REFUSED_TOKEN, FakeCore, expected_tokens, outputs_of, request

from server import engine_loop, framing
from server.engine.config import EngineConfig
from server.engine.types import SequenceOutput, SequenceRequest, StepOutput, TokenLogprob
from server.engine_loop import Core, Link, Load, run
from server.errors import CannotStart
from server.framing import FrameReader
from server.protocol import (
    Addition,
    Commands,
    Configure,
    Fatal,
    FromEngine,
    ModelSource,
    Ready,
    Refused,
    StepReport,
    decode_from_engine,
    encode,
)

CONFIGURE = Configure((ModelSource("a", "/nowhere"),), EngineConfig())
PATIENCE_SECONDS = 20


class Far:
    """The HTTP side's end, blocking and simple, and the loop running behind it."""

    def __init__(self, load: Load) -> None:
        self.socket, theirs = socket.socketpair()
        self.socket.settimeout(PATIENCE_SECONDS)
        for end in (self.socket, theirs):  # small, so that they fill up quickly
            end.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 8192)
        self.exit_codes: list[int] = []
        self._reader = FrameReader()
        self._inbox: list[FromEngine] = []
        self._thread = threading.Thread(target=lambda: self.exit_codes.append(run(theirs, load)))
        self._theirs = theirs
        self.engine_descriptor = theirs.fileno()
        self._thread.start()

    def send(self, message: Commands | Configure) -> None:
        self.socket.sendall(encode(message))

    def add(self, *requests: SequenceRequest, model: int = 0) -> None:
        self.send(Commands(tuple(Addition(model, one) for one in requests)))

    def receive(self) -> FromEngine:
        while not self._inbox:
            data = self.socket.recv(65536)
            assert data, "the engine hung up"
            self._inbox += [decode_from_engine(payload) for payload in self._reader.feed(data)]
        return self._inbox.pop(0)

    def collect(self, ids: Sequence[int]) -> dict[int, list[SequenceOutput]]:
        """All outputs until each of `ids` has finished."""
        outputs: dict[int, list[SequenceOutput]] = {}
        unfinished = set(ids)
        while unfinished:
            message = self.receive()
            if isinstance(message, Refused):
                unfinished -= set(message.ids)
                continue
            assert isinstance(message, StepReport)
            for output in outputs_of(message):
                outputs.setdefault(output.id, []).append(output)
                unfinished -= {output.id} if output.finish_reason else set()
        return outputs

    def exit_code(self) -> int:
        self._thread.join(PATIENCE_SECONDS)
        assert not self._thread.is_alive()
        return self.exit_codes[0]

    def hang_up(self) -> int:
        self.socket.close()
        code = self.exit_code()
        self._theirs.close()
        return code


@pytest.fixture
def start() -> Iterator[Callable[..., Far]]:
    """Starts a loop over the given cores, and ends it with the test."""
    started: list[Far] = []

    def start_one(*cores: Core) -> Far:
        far = Far(lambda configure: cores)
        started.append(far)
        far.send(CONFIGURE)
        assert far.receive() == Ready(tuple(INFO for _ in cores))
        return far

    yield start_one
    for far in started:
        far.hang_up()


def tokens_of(outputs: list[SequenceOutput]) -> list[int]:
    return [token for output in outputs for token in output.tokens]


def test_every_sequence_gets_its_tokens_and_one_finish(start: Callable[..., Far]) -> None:
    far = start(FakeCore(max_running=3))
    requests = [request([n, n + 1], 5 + n, id_=n) for n in range(10)]
    far.add(*requests)
    outputs = far.collect(range(10))
    for one in requests:
        assert tokens_of(outputs[one.id]) == expected_tokens(one.prompt, one.params.max_tokens)
        assert [output.finish_reason for output in outputs[one.id]].count("length") == 1


def test_one_step_is_one_message(start: Callable[..., Far]) -> None:
    core = FakeCore(max_running=8)
    far = start(core)
    far.add(*(request([n], 20, id_=n) for n in range(8)))
    reports = [far.receive() for _ in range(20)]
    assert all(isinstance(report, StepReport) and len(outputs_of(report)) == 8 for report in reports)
    assert core.num_steps == 20


def test_a_step_too_large_for_a_message_is_told_in_several_and_counted_once(
    start: Callable[..., Far], monkeypatch: pytest.MonkeyPatch
) -> None:
    far = start(FakeCore(tokens_per_step=1200))
    monkeypatch.setattr(framing, "MAX_FRAME_BYTES", 10_000)  # two outputs, or the requests
    requests = [request([n], 1200, id_=n) for n in range(8)]
    far.add(*requests)
    reports: list[StepReport] = []
    while sum(len(outputs_of(report)) for report in reports) < 8:
        report = far.receive()
        assert isinstance(report, StepReport)
        reports.append(report)
    outputs = [output for report in reports for output in outputs_of(report)]
    assert [list(output.tokens) for output in outputs] == [expected_tokens(one.prompt, 1200) for one in requests]
    assert [output.finish_reason for output in outputs] == ["length"] * 8
    assert len(reports) > 2
    assert [report.step.stats.num_generated_tokens for report in reports] == [9600] + [0] * (len(reports) - 1)
    assert len({(report.step.stats.started_at, report.step.stats.num_free_blocks) for report in reports}) == 1


def test_a_sequence_with_an_output_too_large_for_a_message_fails_alone(
    start: Callable[..., Far], monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """At its first step, or at its last: then there is nothing left to abort."""
    core = TalkativeCore()
    far = start(core)
    monkeypatch.setattr(framing, "MAX_FRAME_BYTES", 10_000)
    far.add(*(request([TALKATIVE, n], 3 if n % 2 else 1, id_=n) for n in range(4)), request([7], 50, id_=4))
    outputs = far.collect(range(5))
    assert tokens_of(outputs[4]) == expected_tokens([7], 50)
    for id_ in range(4):
        assert [(output.tokens, output.finish_reason) for output in outputs[id_]][:1] == [((), "error")]
        assert "more log-probabilities or traces than the server can pass on" in outputs[id_][0].error
    assert "output_too_large" in caplog.text
    assert core.aborted == [1, 3]
    far.add(request([8], 5, id_=9))
    assert tokens_of(far.collect([9])[9]) == expected_tokens([8], 5)


TALKATIVE = 800


class TalkativeCore(FakeCore):
    """Says of prompts with the token TALKATIVE more than a small message holds."""

    def __init__(self) -> None:
        super().__init__()
        self.aborted: list[int] = []
        self._talkative: set[int] = set()

    def add(self, request: SequenceRequest) -> None:
        super().add(request)
        self._talkative |= {request.id} if TALKATIVE in request.prompt else set()

    def abort(self, ids: Iterable[int]) -> None:
        self.aborted += [id_ for id_ in ids if id_ in self._requests]
        super().abort(ids)

    def step(self) -> StepOutput:
        step = super().step()
        much = (TokenLogprob(1, -1.0, 1, tuple(range(1000)), (-1.0,) * 1000),)
        return replace(
            step,
            outputs=tuple(
                replace(output, prompt_logprobs=much) if output.id in self._talkative and output.tokens else output
                for output in step.outputs
            ),
        )


def test_an_abort_takes_effect_before_the_next_step(start: Callable[..., Far]) -> None:
    core = FakeCore(step_seconds=0.002)
    far = start(core)
    far.add(request([1], 10**6, id_=1))
    far.receive()
    far.send(Commands(abort=(1,)))
    num_steps_before = core.num_steps
    outputs = far.collect([1])[1]
    # The one that was under way when the abort arrived, and the one that reports it.
    assert core.num_steps <= num_steps_before + 2
    assert outputs[-1].finish_reason == "abort"


def test_an_abort_may_name_a_sequence_added_by_the_same_message(start: Callable[..., Far]) -> None:
    far = start(FakeCore())
    far.send(Commands((Addition(0, request([1], 50, id_=1)),), (1,)))
    assert far.collect([1]) == {1: [SequenceOutput(1, finish_reason="abort")]}


def test_models_with_work_take_turns(start: Callable[..., Far]) -> None:
    far = start(FakeCore(), FakeCore(), FakeCore())
    both = (Addition(0, request([1], 200, id_=1)), Addition(2, request([2], 200, id_=2)))
    far.send(Commands(both))
    models = [message.model for message in (far.receive() for _ in range(400)) if isinstance(message, StepReport)]
    assert models == [0, 2] * 200


def test_a_sequence_that_cannot_be_added_fails_alone(start: Callable[..., Far]) -> None:
    far = start(FakeCore())
    far.add(request([1], 5, id_=1), request([REFUSED_TOKEN], 5, id_=2), request([3], 5, id_=3))
    assert far.receive() == Refused((2,))
    outputs = far.collect([1, 3])
    assert tokens_of(outputs[1]) == expected_tokens([1], 5)
    assert tokens_of(outputs[3]) == expected_tokens([3], 5)


def test_a_reader_that_is_late_loses_nothing_and_nobody_locks_up(start: Callable[..., Far]) -> None:
    far = start(FakeCore(max_running=4))
    # Far more in both directions than the sockets hold, and not one byte read until all of it is sent.
    requests = [request([n] * 50, 50, id_=n) for n in range(400)]
    for one in requests:
        far.add(one)
    outputs = far.collect(range(400))
    for one in requests:
        assert tokens_of(outputs[one.id]) == expected_tokens(one.prompt, 50)


def test_the_loop_stops_stepping_for_a_reader_that_never_reads(
    start: Callable[..., Far], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(engine_loop, "MAX_UNSENT_BYTES", 50_000)
    paused = threading.Event()
    wait = Link.wait

    def noted_wait(self: Link) -> None:
        if self.is_clogged:
            paused.set()
        wait(self)

    monkeypatch.setattr(Link, "wait", noted_wait)
    core = FakeCore(max_running=8)
    far = start(core)
    far.add(*(request([n], 2000, id_=n) for n in range(8)))
    assert paused.wait(PATIENCE_SECONDS)
    num_steps = core.num_steps
    # Commands are still read: these are more than the sockets hold.
    for n in range(3000):
        far.send(Commands(abort=(10**9 + n,)))
    assert core.num_steps == num_steps < 2000
    lengths = {id_: len(tokens_of(outputs)) for id_, outputs in far.collect(range(8)).items()}
    assert lengths == dict.fromkeys(range(8), 2000)


def test_hanging_up_ends_an_idle_loop_with_0(start: Callable[..., Far]) -> None:
    assert start(FakeCore()).hang_up() == 0


def test_hanging_up_ends_a_busy_loop_with_0(start: Callable[..., Far]) -> None:
    far = start(FakeCore())
    far.add(request([1], 10**6))
    far.receive()
    assert far.hang_up() == 0


def test_a_step_that_raises_ends_the_process_with_1_and_a_traceback(
    start: Callable[..., Far], caplog: pytest.LogCaptureFixture
) -> None:
    far = start(FakeCore())
    far.add(request([CRASH_TOKEN], 5))
    assert far.exit_code() == engine_loop.EXIT_CRASHED
    assert "engine_crashed" in caplog.text
    assert "the magic token crashed the core" in caplog.text


def test_what_cannot_be_loaded_is_said_before_exiting_with_2() -> None:
    def load(configure: Configure) -> list[Core]:
        raise CannotStart(f"--model {configure.models[0].name}: no")

    far = Far(load)
    far.send(CONFIGURE)
    assert far.receive() == Fatal("--model a: no")
    assert far.exit_code() == engine_loop.EXIT_CANNOT_START
    far.hang_up()


def test_hanging_up_before_configuring_ends_with_0() -> None:
    assert Far(lambda configure: []).hang_up() == 0


def test_garbage_from_the_other_side_ends_the_process(
    start: Callable[..., Far], caplog: pytest.LogCaptureFixture
) -> None:
    far = start(FakeCore())
    far.socket.sendall(b"\xff" * 100)
    assert far.exit_code() == engine_loop.EXIT_CRASHED
    assert "engine_crashed" in caplog.text


def test_every_core_is_told_what_to_watch_for_messages(start: Callable[..., Far]) -> None:
    cores = [FakeCore(), FakeCore()]
    far = start(*cores)
    assert [core.watched for core in cores] == [far.engine_descriptor] * 2
