"""Questions about blocks on their way to the engine and back: answered between steps, or refused in time."""

import asyncio
import socket
import threading
from collections.abc import Awaitable, Callable

import pytest
from fake_core import INFO, NUM_BLOCKS, FakeCore, request

from server import inspections
from server.admission import QueueLimits
from server.engine.config import EngineConfig
from server.engine.inspection import Inspection, PrefixBlock, SequenceBlocks
from server.engine_client import EngineClient
from server.engine_loop import run as run_engine
from server.errors import EngineUnavailable, QueueFull
from server.framing import FrameReader
from server.origins import Origin
from server.protocol import (
    Addition,
    Commands,
    Configure,
    FromEngine,
    Inspect,
    Inspected,
    ModelSource,
    StepReport,
    decode_from_engine,
    decode_to_engine,
    encode,
)

PATIENCE_SECONDS = 20
ANSWER = Inspection(
    num_blocks=9,
    num_free=4,
    num_cached=2,
    num_referenced=3,
    num_sequences=1,
    sequences=(SequenceBlocks(2**40, True, 20, 3, 22, 2, (7, 8)),),
    num_other_sequences=1,
    others=(1,),
    num_prefix_blocks=2,
    prefix_blocks=(PrefixBlock(7, b"\0" * 16, None, 1, None), PrefixBlock(3, b"\xff" * 16, b"\0" * 16, 0, 1)),
)


class Bench:
    """A client, what it sent, and the hand that plays the engine."""

    def __init__(self) -> None:
        self.sent: list[Commands | Inspect] = []
        self.client = EngineClient(["a", "b"], QueueLimits(16, 24))

    def connect(self) -> "Bench":
        self.client.connect([INFO, INFO], self.sent.append)
        return self

    async def ask(self, model: str = "b") -> asyncio.Task[Inspection]:
        """A question that has been sent."""
        task = asyncio.create_task(self.client.inspect(model, "me|", 5))
        await asyncio.sleep(0)
        return task

    def tickets(self) -> list[int]:
        return [message.ticket for message in self.sent if isinstance(message, Inspect)]


def run(test: Callable[[], Awaitable[None]]) -> None:
    async def bounded() -> None:
        await asyncio.wait_for(test(), PATIENCE_SECONDS)

    asyncio.run(bounded())


def payload(message: Inspect | Inspected) -> bytes:
    (only,) = FrameReader().feed(encode(message))
    return only


def test_question_and_answer_survive_the_wire() -> None:
    question, answer = Inspect(3, 1, "tenant|", 40), Inspected(3, ANSWER)
    assert decode_to_engine(payload(question)) == question
    assert decode_from_engine(payload(answer)) == answer


def test_each_question_gets_its_own_answer_in_whatever_order() -> None:
    async def test() -> None:
        bench = Bench().connect()
        first, second = await bench.ask(), await bench.ask("a")
        assert bench.sent == [Inspect(0, 1, "me|", 5), Inspect(1, 0, "me|", 5)]
        other = Inspection(1, 1, 0, 0, 0, (), 0, (), 0, ())
        bench.client.receive(Inspected(1, other))
        bench.client.receive(Inspected(0, ANSWER))
        assert await first == ANSWER
        assert await second == other

    run(test)


def test_without_an_engine_nothing_is_asked() -> None:
    async def test() -> None:
        bench = Bench()
        with pytest.raises(EngineUnavailable, match="still loading"):
            await bench.client.inspect("a", "", 1)
        bench.connect().client.disconnect("it died")
        with pytest.raises(EngineUnavailable, match="restarting"):
            await bench.client.inspect("a", "", 1)
        assert bench.sent == []

    run(test)


def test_an_engine_that_dies_leaves_no_question_open() -> None:
    async def test() -> None:
        bench = Bench().connect()
        task = await bench.ask()
        bench.client.disconnect("the engine process died")
        with pytest.raises(EngineUnavailable, match="the engine process died"):
            await task

    run(test)


def test_an_engine_that_does_not_answer_in_time_is_unavailable() -> None:
    async def test() -> None:
        open_inspections = inspections.OpenInspections(answer_seconds=0.01)
        sent: list[Inspect] = []
        with pytest.raises(EngineUnavailable, match="did not answer within"):
            await open_inspections.ask(Inspect(0, 0, "", 1), sent.append)
        open_inspections.answer(Inspected(sent[0].ticket, ANSWER))  # too late, and harmless

    run(test)


def test_too_many_questions_at_a_time_are_refused_and_make_room_when_answered() -> None:
    async def test() -> None:
        bench = Bench().connect()
        tasks = [await bench.ask() for _ in range(inspections.MAX_OPEN)]
        with pytest.raises(QueueFull):
            await bench.client.inspect("a", "", 1)
        tasks[-1].cancel()
        await asyncio.wait({tasks.pop()})
        tasks.append(await bench.ask())
        for ticket in bench.tickets():
            bench.client.receive(Inspected(ticket, ANSWER))
        assert [await task for task in tasks] == [ANSWER] * inspections.MAX_OPEN

    run(test)


def test_sequences_are_remembered_by_the_answer_they_belong_to() -> None:
    async def test() -> None:
        client = Bench().connect().client
        client.open("a", [request([1], 4)], "cmpl-1").close()
        client.open("b", [request([1], 4, id_=index) for index in range(2)], "cmpl-2").close()
        origins = [client.find_origin(id_) for id_ in range(4)]
        assert origins == [Origin("cmpl-1", 0, ""), Origin("cmpl-2", 0, ""), Origin("cmpl-2", 1, ""), None]

    run(test)


def test_the_engine_answers_between_the_steps_of_a_busy_core() -> None:
    """Whole loop, real socket: the answer comes while the sequence is still running."""
    ours, theirs = socket.socketpair()
    ours.settimeout(PATIENCE_SECONDS)
    thread = threading.Thread(target=run_engine, args=(theirs, lambda configure: (FakeCore(), FakeCore())))
    thread.start()
    reader, inbox = FrameReader(), list[FromEngine]()

    def receive() -> FromEngine:
        while not inbox:
            inbox.extend(map(decode_from_engine, reader.feed(ours.recv(65536))))
        return inbox.pop(0)

    ours.sendall(encode(Configure((ModelSource("a", "/x"), ModelSource("b", "/y")), EngineConfig())))
    receive()
    ours.sendall(encode(Commands((Addition(1, request([5], 100_000)),))))
    while not isinstance(receive(), StepReport):
        pass
    ours.sendall(encode(Inspect(7, 1, "", 10)) + encode(Inspect(8, 0, "", 10)))
    answers = []
    while len(answers) < 2:
        if isinstance(message := receive(), Inspected):
            answers.append(message)
    assert isinstance(receive(), StepReport)
    ours.close()
    thread.join(PATIENCE_SECONDS)
    theirs.close()
    assert not thread.is_alive()
    assert [(answer.ticket, answer.inspection.num_referenced) for answer in answers] == [(7, 1), (8, 0)]
    assert all(answer.inspection.num_blocks == NUM_BLOCKS for answer in answers)
