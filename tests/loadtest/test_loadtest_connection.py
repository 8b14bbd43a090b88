"""HTTP answers as the bytes that a server may send, cut anywhere: what is made of them, and when."""

import asyncio
import json
from collections.abc import Callable, Sequence
from itertools import groupby
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from loadtest.client import Streamed
from loadtest.connection import Connection, Head, ProtocolError
from loadtest.record import RequestError
from loadtest.stream import StreamReading

EVENTS = b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\n"
CHUNKED = EVENTS + b"transfer-encoding: chunked\r\n\r\n"


class Wire(asyncio.Transport):
    """Takes the socket's place."""

    def __init__(self) -> None:
        super().__init__()
        self.is_aborted = False

    def write(self, data: object) -> None:
        pass

    def abort(self) -> None:
        self.is_aborted = True


class Whole:
    """Keeps everything."""

    def __init__(self) -> None:
        self.heads: list[Head] = []
        self.body = b""

    def begin(self, head: Head) -> bool:
        self.heads.append(head)
        return True

    def take(self, data: bytes, now: float) -> bool:
        self.body += data
        return True


def deliver(answer: Any, pieces: Sequence[bytes], *, then_closed: bool = False) -> Connection:
    """The connection after `pieces` came, one a read, the clock telling their numbers. Raises what an exchange does."""

    async def go() -> Connection:
        reads = iter(range(len(pieces)))
        connection = Connection(lambda: float(next(reads)))
        connection.connection_made(Wire())
        exchange = asyncio.create_task(connection.exchange(b"", answer))
        await asyncio.sleep(0)
        for piece in pieces:
            connection.data_received(piece)
        if then_closed:
            connection.connection_lost(None)
        await exchange
        return connection

    return asyncio.run(go())


def in_chunks(body: bytes, cuts: Sequence[int]) -> bytes:
    """`body` as HTTP's chunks, cut where told, without the last and empty one."""
    ends = sorted({cut for cut in cuts if 0 < cut < len(body)} | {len(body)})
    pieces = [body[start:end] for start, end in zip([0, *ends], ends, strict=False)]
    return b"".join(b"%x\r\n%b\r\n" % (len(piece), piece) for piece in pieces if piece)


def body_so_far(stream: bytes) -> bytes:
    """A dumb reader of chunks: what is there of the body."""
    rest, body = stream.removeprefix(CHUNKED), b""
    while b"\r\n" in rest:
        size, _, rest = rest.partition(b"\r\n")
        length = int(size, 16)
        body, rest = body + rest[:length], rest[length + 2 :]
    return body


def payloads_so_far(stream: bytes) -> list[str]:
    """A dumb reader of events: line by line, all from the start."""
    found, data = [], []
    for line in body_so_far(stream).decode(errors="replace").replace("\r\n", "\n").split("\n")[:-1]:
        if line.startswith("data:"):
            data.append(line.removeprefix("data:").removeprefix(" "))
        elif not line and data:
            found.append("\n".join(data))
            data = []
    return found


def tokens_so_far(stream: bytes) -> int:
    """Events that show text."""
    events = [json.loads(payload) for payload in payloads_so_far(stream) if payload != "[DONE]"]
    choices = [event["choices"] for event in events if event.get("choices")]
    return sum(bool(each[0].get("text") or each[0].get("delta", {}).get("content")) for each in choices)


TEXT = st.text(st.characters(exclude_categories=["Cs"]), max_size=4)
CHUNK = st.one_of(
    TEXT.map(lambda text: {"choices": [{"text": text, "finish_reason": None}], "usage": None}),
    TEXT.map(lambda text: {"choices": [{"delta": {"role": "assistant", "content": text}}], "id": "x\n"}),
    st.just({"choices": [{"text": "", "finish_reason": "stop"}]}),
    st.just({"choices": [], "usage": {"prompt_tokens": 3, "completion_tokens": 7}}),
)
BETWEEN = st.sampled_from(["", ": ping\n\n", "event: message\nid: 5\n", "\n\n", "retry: 5\n\n", ":\n"])


@st.composite
def streams(draw: st.DrawFn) -> tuple[bytes, list[int]]:
    """A whole answer, and where its reads end."""
    events = [
        draw(BETWEEN) + "data:" + draw(st.sampled_from(["", " "])) + json.dumps(chunk, ensure_ascii=draw(st.booleans()))
        for chunk in draw(st.lists(CHUNK, max_size=8))
    ]
    text = "".join(f"{event}\n\n" for event in [*events, "data: [DONE]"])
    body = text.replace("\n", draw(st.sampled_from(["\n", "\r\n"]))).encode()
    places = st.lists(st.integers(0, len(body)), max_size=12)
    stream = CHUNKED + in_chunks(body, draw(places)) + b"0\r\n\r\n"
    reads = draw(st.lists(st.integers(len(CHUNKED), len(stream)), max_size=12))
    return stream, sorted({*reads, len(stream)})


@settings(deadline=None)
@given(streams())
def test_every_token_is_seen_in_the_read_that_completed_it_however_bytes_were_cut(case: tuple[bytes, list[int]]):
    stream, ends = case
    reading = StreamReading(continuous_usage=False)
    pieces = [stream[start:end] for start, end in zip([0, *ends], ends, strict=False)]
    assert deliver(Streamed(reading, None), pieces).is_free
    counts = [tokens_so_far(stream[:end]) for end in ends]
    times = [now for now, count in enumerate(counts) for _ in range(count - (counts[now - 1] if now else 0))]
    assert reading.num_chunks == counts[-1] == len(times)
    assert reading.first == (times[0] if times else None)
    gaps: list[float] = []
    for now, together in groupby(times[1:]):  # those of one read share the time since the one before
        count = len(list(together))
        gaps += [(now - times[len(gaps)]) / count] * count
    assert reading.itls == pytest.approx(gaps)
    told = [payload for payload in payloads_so_far(stream) if '"completion_tokens"' in payload]
    assert reading.output_tokens == (7 if told else counts[-1])
    assert reading.done_at == len(pieces) - 1 - sum("[DONE]" in str(payloads_so_far(stream[:end])) for end in ends[:-1])


BODIES = [
    b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nhello",
    b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n3\r\nhel\r\n2;x=y\r\nlo\r\n0\r\nlate: 1\r\n\r\n",
    b"HTTP/1.1 100 Continue\r\nx: 1\r\n\r\nHTTP/1.1 200 OK\r\ncontent-length: 5\r\n\r\nhello",
    b"HTTP/1.1 200 OK\ncontent-length: 5\n\nhello",
]


@pytest.mark.parametrize("stream", BODIES)
@pytest.mark.parametrize("size", [1, 2, 7, 1000])
def test_a_body_is_whole_however_it_is_framed_and_cut(stream: bytes, size: int):
    answer = Whole()
    connection = deliver(answer, [stream[start : start + size] for start in range(0, len(stream), size)])
    assert (answer.body, [head.status for head in answer.heads]) == (b"hello", [200])
    assert "x" not in answer.heads[0].headers
    assert connection.is_free


@pytest.mark.parametrize("head", [b"HTTP/1.0 200 OK\r\n\r\n", b"HTTP/1.1 200 OK\r\nconnection: close\r\n\r\n"])
def test_a_body_without_framing_ends_with_the_connection(head: bytes):
    answer = Whole()
    assert not deliver(answer, [head + b"hel", b"lo"], then_closed=True).is_free
    assert answer.body == b"hello"


@pytest.mark.parametrize(
    "stream",
    [
        b"HTTP/1.1 200 OK\r\nconnection: close\r\ncontent-length: 5\r\n\r\nhello",
        b"HTTP/1.0 200 OK\r\ncontent-length: 5\r\n\r\nhello",
        b"HTTP/1.1 200 OK\r\ncontent-length: 5\r\n\r\nhello, said nobody",
    ],
)
def test_a_whole_answer_may_be_its_connection_s_last(stream: bytes):
    answer = Whole()
    assert not deliver(answer, [stream]).is_free
    assert answer.body == b"hello"


@pytest.mark.parametrize("stream", [b"220 ESMTP\r\n", CHUNKED + b"zz\r\nhello\r\n", b"HTTP/1.1 two hundred\r\n\r\n"])
def test_what_is_not_http_is_told_apart(stream: bytes):
    with pytest.raises(ProtocolError, match="not HTTP"):
        deliver(Whole(), [stream])


@pytest.mark.parametrize(
    "stream", [b"", b"HTTP/1.1 200 OK\r\ncont", CHUNKED, CHUNKED + b"5\r\nhel", CHUNKED + b"0\r\n"]
)
def test_a_connection_that_closes_too_soon_is_broken(stream: bytes):
    with pytest.raises(ConnectionError, match="the server closed the connection"):
        deliver(Whole(), [stream] if stream else [], then_closed=True)


def test_events_that_came_with_the_break_are_still_read():
    reading = StreamReading(continuous_usage=False)
    with pytest.raises(ProtocolError):
        deliver(Streamed(reading, None), [CHUNKED + in_chunks(b'data: {"choices":[{"text":"a"}]}\n\n', []) + b"zz\r\n"])
    assert reading.num_chunks == 1


def events_of(num_tokens: int) -> bytes:
    return in_chunks(b'data: {"choices":[{"text":"a"}]}\n\n' * num_tokens, [])


@pytest.mark.parametrize(("leave_after", "num_seen"), [(0, 0), (1, 2), (3, 4)])
def test_leaving_ends_the_exchange_at_once_and_what_comes_later_is_not_looked_at(leave_after: int, num_seen: int):
    reading = StreamReading(continuous_usage=False)
    connection = deliver(Streamed(reading, leave_after), [CHUNKED, *[events_of(2)] * 5])
    assert reading.num_chunks == num_seen
    assert not connection.is_free


@pytest.mark.parametrize(
    ("head", "complaint"),
    [
        (b"HTTP/1.1 200 OK\r\ncontent-type: application/json\r\n\r\n", "content type application/json"),
        (EVENTS + b"content-encoding: gzip\r\n\r\n", "content encoding gzip"),
    ],
)
def test_a_head_that_promises_no_plain_events_is_malformed(head: bytes, complaint: str):
    with pytest.raises(RequestError, match=f"malformed: {complaint}"):
        deliver(Streamed(StreamReading(continuous_usage=False), None), [head])


def test_names_and_case_of_headers_are_free():
    head = b"HTTP/1.1 200 Fine\r\nConTent-TYPE: Text/Event-Stream ; charset=utf-8\r\nContent-Length: 0\r\n\r\n"
    reading = StreamReading(continuous_usage=False)
    deliver(Streamed(reading, None), [head])
    assert reading.answered


def test_a_fault_in_the_reader_reaches_who_asked():
    class Faulty(Whole):
        def take(self, data: bytes, now: float) -> bool:
            raise KeyError("a mistake of ours")

    with pytest.raises(KeyError, match="a mistake of ours"):
        deliver(Faulty(), [CHUNKED + events_of(1)])


def on_a_connection(use: Callable[[Connection, Wire], None]) -> None:
    async def go() -> None:
        connection, wire = Connection(lambda: 0.0), Wire()
        connection.connection_made(wire)
        use(connection, wire)

    asyncio.run(go())


def test_words_that_nobody_asked_for_end_a_connection():
    def use(connection: Connection, wire: Wire) -> None:
        assert connection.is_free
        connection.data_received(b"HTTP/1.1 408 Request Timeout\r\ncontent-length: 0\r\n\r\n")
        assert wire.is_aborted
        assert not connection.is_free

    on_a_connection(use)
