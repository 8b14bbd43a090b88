"""Pieces of a body written without `send`, over a real connection."""

import asyncio
import socket
from collections.abc import Awaitable, Callable

from starlette.types import ASGIApp, Receive, Scope, Send

from server.api.direct_send import DirectBody, direct_body
from server.lifetime import build_http_server
from server.stream_protocol import ChunkedBody, Outbox

PATIENCE_SECONDS = 20
PIECE = b"x" * 2**16
MANY = 2**10  # pieces, more than any socket takes
Story = Callable[[DirectBody, Send], Awaitable[None]]
Client = Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]]


def telling(story: Story) -> ASGIApp:
    """An application whose body is what `story` makes of it between the head and the end."""

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        body = direct_body(scope)
        assert body is not None
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await story(body, send)
        await send({"type": "http.response.body", "body": b"", "more_body": False})

    return app


def serve(app: ASGIApp, client: Client) -> None:
    """Run the server, and `client` on a connection to it that has asked."""

    async def run() -> None:
        listener = socket.create_server(("127.0.0.1", 0))
        http = build_http_server(app, access_log=False)
        serving = asyncio.create_task(http.serve(sockets=[listener]))
        reader, writer = await asyncio.open_connection(*listener.getsockname())
        writer.write(b"GET / HTTP/1.1\r\nhost: x\r\n\r\n")
        await reader.readuntil(b"\r\n\r\n")
        await client(reader, writer)
        writer.close()
        http.should_exit = True
        await serving

    asyncio.run(asyncio.wait_for(run(), PATIENCE_SECONDS))


async def read_chunks(reader: asyncio.StreamReader) -> list[bytes]:
    """The chunks of a body, to its end."""
    chunks = []
    while length := int(await reader.readline(), 16):
        chunks.append(await reader.readexactly(length))
        assert await reader.readline() == b"\r\n"
    return chunks


def test_pieces_written_directly_keep_their_places_among_those_that_were_sent() -> None:
    async def story(body: DirectBody, send: Send) -> None:
        await send({"type": "http.response.body", "body": b"a", "more_body": True})
        woken = asyncio.get_running_loop().create_future()

        def step() -> None:
            assert body.write(b"b")
            assert body.write(b"c")
            woken.set_result(None)

        asyncio.get_running_loop().call_soon(step)
        await woken
        await send({"type": "http.response.body", "body": b"d", "more_body": True})

    async def client(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        assert await read_chunks(reader) == [b"a", b"bc", b"d"]

    serve(telling(story), client)


def test_a_client_that_does_not_read_is_left_to_send_which_waits_for_it() -> None:
    refused = asyncio.Event()
    num_written = 0

    async def story(body: DirectBody, send: Send) -> None:
        nonlocal num_written
        while body.write(PIECE):
            num_written += 1
            assert num_written < MANY
            await asyncio.sleep(0)
        refused.set()
        await send({"type": "http.response.body", "body": b"waited", "more_body": True})
        assert body.write(b"ready")
        await asyncio.sleep(0)

    async def client(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await refused.wait()
        chunks = await read_chunks(reader)
        assert chunks == [PIECE] * num_written + [b"waited", b"ready"]

    serve(telling(story), client)


def test_a_client_that_has_gone_is_not_written_to() -> None:
    gone = asyncio.Event()

    async def story(body: DirectBody, send: Send) -> None:
        while body.write(b"x"):
            await asyncio.sleep(0)
        gone.set()

    async def client(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.close()
        await gone.wait()

    serve(telling(story), client)


def test_a_connection_that_cannot_be_written_to_holds_no_other_up() -> None:
    class Broken(asyncio.Transport):
        def is_closing(self) -> bool:
            return False

        def write(self, data: bytes | bytearray | memoryview) -> None:
            raise RuntimeError("broken")

    class Kept(Broken):
        def __init__(self) -> None:
            self.written = b""

        def write(self, data: bytes | bytearray | memoryview) -> None:
            self.written += data

    async def run() -> list[bytes]:
        told: list[object] = []
        asyncio.get_running_loop().set_exception_handler(lambda loop, context: told.append(context["exception"]))
        outbox = Outbox()
        kept = [Kept() for _ in range(3)]
        for transport in (kept[0], Broken(), kept[1], Broken(), kept[2]):
            assert ChunkedBody(transport, outbox).write(b"ab")
        await asyncio.sleep(0)  # whoever comes next may write what follows, past the outbox
        (error,) = told
        assert isinstance(error, RuntimeError)
        assert [str(error), str(error.__context__)] == ["broken", "broken"]
        return [transport.written for transport in kept]

    assert asyncio.run(run()) == [b"2\r\nab\r\n"] * 3
