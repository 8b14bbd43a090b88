"""Frames: whatever the stream does to them, the payloads come out as they went in."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from server import framing
from server.errors import FrameTooLarge
from server.framing import FrameReader, frame


@given(st.lists(st.binary(max_size=40), max_size=8), st.lists(st.integers(1, 7), min_size=1, max_size=8))
def test_payloads_survive_any_cutting_of_the_stream(payloads: list[bytes], lengths: list[int]) -> None:
    stream = b"".join(frame(payload) for payload in payloads)
    reader, received, position, turn = FrameReader(), [], 0, 0
    while position < len(stream):
        length = lengths[turn % len(lengths)]
        received += reader.feed(stream[position : position + length])
        position, turn = position + length, turn + 1
    assert received == payloads


def test_one_piece_with_many_frames_gives_all_of_them() -> None:
    payloads = [bytes([n]) * n for n in range(200)]
    assert FrameReader().feed(b"".join(map(frame, payloads))) == payloads


def test_an_announced_length_beyond_the_limit_is_refused_before_anything_is_allocated() -> None:
    with pytest.raises(FrameTooLarge, match=str(framing.MAX_FRAME_BYTES)):
        FrameReader().feed((framing.MAX_FRAME_BYTES + 1).to_bytes(4, "big"))


def test_the_largest_frame_passes_and_one_byte_more_does_not(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(framing, "MAX_FRAME_BYTES", 100)
    assert FrameReader().feed(frame(b"x" * 100)) == [b"x" * 100]
    with pytest.raises(FrameTooLarge, match="101"):
        frame(b"x" * 101)
