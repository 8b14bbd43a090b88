"""What a turn of the loop writes to a connection, in one piece."""

import asyncio

import pytest

from server.gathered_writes import GatheredWrites

pytestmark = pytest.mark.anyio


@pytest.fixture
def anyio_backend() -> str:
    return "asyncio"


class Below(asyncio.Transport):
    """Notes what reaches it."""

    def __init__(self) -> None:
        self.calls: list[bytes | str] = []

    def write(self, data: bytes | bytearray | memoryview) -> None:
        self.calls.append(bytes(data))

    def close(self) -> None:
        self.calls.append("close")

    def is_closing(self) -> bool:
        return "close" in self.calls


def over(below: Below) -> GatheredWrites:
    return GatheredWrites(below, asyncio.get_running_loop())


async def test_what_a_turn_writes_leaves_together_and_in_order() -> None:
    below = Below()
    transport = over(below)
    for piece in (b"head", b"", b"body"):
        transport.write(piece)
    assert below.calls == []
    await asyncio.sleep(0)
    transport.write(b"end")
    await asyncio.sleep(0)
    assert below.calls == [b"headbody", b"end"]


async def test_a_piece_may_be_changed_once_it_is_written() -> None:
    below = Below()
    piece = bytearray(b"as it was")
    over(below).write(piece)
    piece[:] = b"as it is!"
    await asyncio.sleep(0)
    assert below.calls == [b"as it was"]


async def test_much_is_not_gathered() -> None:
    below = Below()
    transport = over(below)
    transport.write(b"a")
    transport.write(bytes(100_000))
    assert below.calls == [b"a" + bytes(100_000)]
    await asyncio.sleep(0)
    assert len(below.calls) == 1


async def test_closing_comes_after_what_was_written_and_ends_it() -> None:
    below = Below()
    transport = over(below)
    transport.write(b"last")
    transport.close()
    transport.write(b"too late")
    await asyncio.sleep(0)
    assert below.calls == [b"last", "close"]
