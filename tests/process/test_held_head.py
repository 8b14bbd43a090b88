"""The head of an answer and what comes first behind it, in one piece."""

import asyncio

import pytest

from server.held_head import HeldHead

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


def over(below: Below) -> HeldHead:
    transport = HeldHead(below, asyncio.get_running_loop())
    transport.hold()
    return transport


async def test_a_head_leaves_with_what_comes_first_and_nothing_else_waits() -> None:
    below = Below()
    transport = over(below)
    for piece in (b"head", b"first", b"second"):
        transport.write(piece)
    assert below.calls == [b"headfirst", b"second"]
    transport.hold()
    transport.write(b"head of the next")
    transport.write(b"first")
    assert below.calls[2:] == [b"head of the nextfirst"]
    await asyncio.sleep(0)
    assert len(below.calls) == 3


async def test_a_head_that_nothing_follows_leaves_in_the_next_turn() -> None:
    below = Below()
    transport = over(below)
    transport.write(b"head")
    assert below.calls == []
    await asyncio.sleep(0)
    transport.write(b"later")
    assert below.calls == [b"head", b"later"]


async def test_two_heads_in_one_turn_keep_their_order() -> None:
    below = Below()
    transport = over(below)
    transport.write(b"go on")
    transport.hold()
    transport.write(b"head")
    await asyncio.sleep(0)
    assert below.calls == [b"go onhead"]


async def test_closing_comes_after_a_head_that_is_held_and_ends_it() -> None:
    below = Below()
    transport = over(below)
    transport.write(b"last")
    transport.close()
    await asyncio.sleep(0)
    assert below.calls == [b"last", "close"]
