"""An incremental parser for server-sent events: bytes in, the data of whole events out. Knows no JSON and no I/O."""


class SSEParser:
    """Feed it reads cut anywhere; it returns each event's data once the blank line that ends it has arrived.

    Lines end in LF or CRLF. Comments and fields other than `data` are skipped, several `data` lines are joined by LF,
    and an event that the stream's end cuts off is dropped, as the HTML standard, section 9.2.6, says.
    """

    def __init__(self) -> None:
        self._rest = b""
        self._data: list[bytes] = []

    def feed(self, read: bytes) -> list[bytes]:
        """The data of the events that this read completed, oldest first."""
        *lines, self._rest = (self._rest + read).split(b"\n")
        events = []
        for line in lines:
            line = line.removesuffix(b"\r")
            if line:
                self._take(line)
            elif self._data:
                events.append(b"\n".join(self._data))
                self._data = []
        return events

    def _take(self, line: bytes) -> None:
        field, _, value = line.partition(b":")
        if field == b"data":
            self._data.append(value.removeprefix(b" "))
