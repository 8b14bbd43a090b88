"""Frames on a byte stream: a 4-byte length, then that many bytes. Knows neither sockets nor what the bytes mean."""

from server.errors import FrameTooLarge

HEADER_BYTES = 4
# Far above any honest message (a full queue of long prompts is a few MiB), and low enough that a corrupt length is
# refused before it becomes an allocation.
MAX_FRAME_BYTES = 64 * 2**20


def frame(payload: bytes) -> bytes:
    """The payload with its header. Raises FrameTooLarge."""
    if len(payload) > MAX_FRAME_BYTES:
        raise FrameTooLarge(f"a message of {len(payload)} bytes; the limit is {MAX_FRAME_BYTES}")
    return len(payload).to_bytes(HEADER_BYTES, "big") + payload


class FrameReader:
    """Cuts a stream, fed in whatever pieces it arrives in, back into payloads."""

    def __init__(self) -> None:
        self._buffer = bytearray()

    def feed(self, data: bytes) -> list[bytes]:
        """Every payload completed by `data`, in order. Raises FrameTooLarge."""
        self._buffer += data
        payloads = []
        start = 0
        while len(self._buffer) - start >= HEADER_BYTES:
            end = start + HEADER_BYTES + self._length_at(start)
            if len(self._buffer) < end:
                break
            payloads.append(bytes(self._buffer[start + HEADER_BYTES : end]))
            start = end
        # Once per feed and not once per frame: deleting from the front moves everything behind it.
        del self._buffer[:start]
        return payloads

    def _length_at(self, start: int) -> int:
        length = int.from_bytes(self._buffer[start : start + HEADER_BYTES], "big")
        if length > MAX_FRAME_BYTES:
            raise FrameTooLarge(f"a message says it has {length} bytes; the limit is {MAX_FRAME_BYTES}")
        return length
