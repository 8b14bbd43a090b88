"""Connections to a raw server on loopback: which are used again, and what becomes of those that break."""

import asyncio
from collections.abc import Awaitable, Callable
from contextlib import suppress
from dataclasses import replace

import pytest

from loadtest.client import Client
from loadtest.config import RequestOptions, ServerOptions
from loadtest.connection import Head
from loadtest.record import Record
from loadtest.session import REST_SECONDS, Session, with_body
from loadtest.workload import Workload

GOOD = b"HTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n"
REFUSAL = b"HTTP/1.1 503 Busy\r\ncontent-length: 99\r\n\r\ncome back later"
FINISHED = b'data: {"choices":[{"text":"a","finish_reason":"stop"}]}\n\n'
UNFINISHED = b'data: {"choices":[{"text":"a"}]}\n\n'
STREAM = b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\ncontent-length: 999\r\n\r\n"


class Nothing:
    """Reads an empty answer."""

    def begin(self, head: Head) -> bool:
        return True

    def take(self, data: bytes, now: float) -> bool:
        return True


class Scripted:
    """Answers each request with the same bytes, and may close after them."""

    def __init__(self, answer: bytes, closes: bool) -> None:
        self.connections: list[asyncio.Task[None]] = []
        self.asked: list[bytes] = []
        self._answer, self._closes = answer, closes

    def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.connections.append(asyncio.create_task(self._serve(reader, writer)))

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with suppress(ConnectionError):
            while asked := await reader.read(2**16):
                self.asked.append(asked)
                writer.write(self._answer)
                if self._closes:
                    break
        writer.close()
        with suppress(ConnectionError):
            await writer.wait_closed()


def talk(scripted: Scripted, use: Callable[[ServerOptions], Awaitable[None]]) -> None:
    async def go() -> None:
        async with await asyncio.start_server(scripted.serve, "127.0.0.1", 0) as server:
            port = server.sockets[0].getsockname()[1]
            await use(ServerOptions(url=f"http://127.0.0.1:{port}/base", timeout_seconds=5))
            await asyncio.gather(*scripted.connections)

    asyncio.run(go())


def connections_for(now: list[float], rests: list[float], *, closes: bool = False, fresh: bool = False) -> int:
    """How many connections a request before, and one after each of `rests`, take."""
    scripted = Scripted(GOOD, closes)

    async def use(server: ServerOptions) -> None:
        async with Session(replace(server, fresh_connections=fresh), lambda: now[0]) as session:
            for rest in [0.0, *rests]:
                now[0] += rest
                await session.exchange(with_body(session.head("GET", session.server.url)), Nothing())
                while closes and any(connection.is_free for _, connection in session._resting):
                    await asyncio.sleep(0)  # until its end has come

    talk(scripted, use)
    return len(scripted.connections)


def test_a_connection_is_used_again_unless_it_rested_long_or_was_closed_or_is_to_be_fresh():
    short, long = REST_SECONDS / 2, REST_SECONDS * 2
    assert connections_for([0.0], [short, short, short]) == 1
    assert connections_for([0.0], [short, long, short]) == 2
    assert connections_for([0.0], [short, short, short], closes=True) == 4
    assert connections_for([0.0], [short, short, short], fresh=True) == 4


def test_requests_say_where_to_and_whether_to_stay():
    scripted = Scripted(GOOD, closes=False)

    async def use(server: ServerOptions) -> None:
        for fresh in (False, True):
            async with Session(replace(server, fresh_connections=fresh)) as session:
                head = session.head("POST", session.server.url + "/a b")
                await session.exchange(with_body(head, b"{}"), Nothing())

    talk(scripted, use)
    for asked in scripted.asked:
        assert asked.startswith(b"POST /base/a%20b HTTP/1.1\r\nHost: 127.0.0.1:")
        assert asked.endswith(b"Content-Length: 2\r\n\r\n{}")
    assert [b"Connection: close" in asked for asked in scripted.asked] == [False, True]


def record_of(answer: bytes, timeout_seconds: float = 5.0) -> Record:
    """What a server that sends `answer` and closes is recorded as; with a short timeout, one that sends no more."""
    found = []

    async def use(server: ServerOptions) -> None:
        async with Session(replace(server, timeout_seconds=timeout_seconds)) as session:
            client = Client(session, "tiny", RequestOptions())
            found.append(await client.send(Workload(RequestOptions()).request(0), None))

    talk(Scripted(answer, closes=timeout_seconds == 5.0), use)
    return found[0]


@pytest.mark.parametrize(
    ("answer", "kind", "detail"),
    [
        (b"", "connect", "the server closed the connection"),
        (b"SSH-2.0\r\n", "malformed", "not HTTP"),
        (REFUSAL, "http_503", "come back later"),
        (STREAM, "truncated", "the server closed the connection"),
        (STREAM + FINISHED, "truncated", "the server closed the connection"),
        (STREAM.replace(b"999", b"%d" % len(UNFINISHED)) + UNFINISHED, "truncated", "ended after 1 chunks, without a"),
        (STREAM + FINISHED.replace(b"stop", b"error"), "stream_error", "finish_reason error"),
    ],
)
def test_what_a_server_leaves_behind_is_counted_under_what_it_was(answer: bytes, kind: str, detail: str):
    record = record_of(answer)
    assert (record.outcome, record.error_kind) == ("error", kind)
    assert detail in str(record.error_detail)


def test_a_refusal_whose_end_never_comes_is_a_refusal():
    record = record_of(REFUSAL, timeout_seconds=0.1)
    assert (record.error_kind, record.error_detail) == ("http_503", "come back later")


def test_after_done_an_answer_is_whole_whatever_becomes_of_the_connection():
    record = record_of(STREAM + FINISHED + b"data: [DONE]\n\n")
    assert (record.outcome, record.num_chunks, record.finish_reason) == ("ok", 1, "stop")
