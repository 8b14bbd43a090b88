"""An incremental parser for server-sent events: bytes in, the data of whole events out. Knows no JSON and no I/O."""

import re

_BLANK_LINE = re.compile(rb"\r?\n\r?\n")


class SSEParser:
    """Feed it reads cut anywhere; it returns each event's data once the blank line that ends it has arrived.

    Lines end in LF or CRLF. Comments and fields other than `data` are skipped, several `data` lines are joined by LF,
    and an event that the stream's end cuts off is dropped, as the HTML standard, section 9.2.6, says.
    """

    def __init__(self) -> None:
        self._rest = b""

    def feed(self, read: bytes) -> list[bytes]:
        """The data of the events that this read completed, oldest first."""
        if self._rest:
            read = self._rest + read
        events = _BLANK_LINE.split(read) if b"\r" in read else read.split(b"\n\n")
        self._rest = events.pop()
        found = []
        for event in events:
            # Nearly every event is one line of data, and every token that is generated comes through here.
            if event.startswith(b"data: ") and b"\n" not in event:
                found.append(event[6:])
            elif (data := _data(event)) is not None:
                found.append(data)
        return found


def _data(event: bytes) -> bytes | None:
    """What the lines of an event, without the blank one, say together; None where none of them is data."""
    values = []
    for line in event.split(b"\n"):
        field, _, value = line.removesuffix(b"\r").partition(b":")
        if field == b"data":
            values.append(value.removeprefix(b" "))
    return b"\n".join(values) if values else None
