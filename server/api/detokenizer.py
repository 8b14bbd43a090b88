"""Tokens' bytes to text, a token at a time, losing nothing. It knows no tokenizer, no stop string and no request."""

import codecs
from collections.abc import Callable

import msgspec


class WholeTexts(dict[int, bytes | None]):
    """Tokens' texts as JSON, made once for all streams of a model; None for a token with a part of a character."""

    def __init__(self, token_bytes: Callable[[int], bytes]) -> None:
        super().__init__()
        self._token_bytes = token_bytes

    def __missing__(self, token: int) -> bytes | None:
        try:
            self[token] = msgspec.json.encode(self._token_bytes(token).decode())
        except UnicodeDecodeError:
            self[token] = None
        return self[token]


class IncrementalText:
    """UTF-8 over a stream of byte strings: the pieces joined are the joined bytes decoded with errors="replace".

    A character split over tokens appears with the token that completes it, never as a replacement character first.
    """

    def __init__(self) -> None:
        self._decoder = codecs.getincrementaldecoder("utf-8")("replace")
        self.is_whole = True  # no character has begun without its end
        self.length = 0  # characters given out so far: the offset at which the next byte's character will stand

    def push(self, data: bytes) -> str:
        """The characters that `data` completes."""
        if self.is_whole:  # as nearly always: then whole characters decode by themselves, at a tenth of the cost
            try:
                text = data.decode()
                self.length += len(text)
                return text
            except UnicodeDecodeError:
                pass
        text = self._decoder.decode(data)
        self.is_whole = not self._decoder.getstate()[0]
        return self._count(text)

    def finish(self) -> str:
        """What the end of the stream leaves of an unfinished character: a replacement character, or nothing."""
        return self._count(self._decoder.decode(b"", final=True))

    def _count(self, text: str) -> str:
        self.length += len(text)
        return text
