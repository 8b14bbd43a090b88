"""Events that differ in their text alone: encoded once, with a gap for the text. It knows no shape."""

from dataclasses import dataclass

import msgspec

# No answer holds a null character but in its text: ids and fingerprints are ours, names come from a command line.
MARK = "\0"
_ENCODED_MARK = msgspec.json.encode(MARK)


@dataclass(frozen=True, slots=True)
class EventTemplate:
    """The bytes before and behind the text."""

    before: bytes
    behind: bytes

    @classmethod
    def of(cls, event: bytes) -> "EventTemplate":
        """`event` with MARK for its text."""
        before, behind = event.split(_ENCODED_MARK)
        return cls(before, behind)

    def fill(self, text: str) -> bytes:
        return self.before + msgspec.json.encode(text) + self.behind
