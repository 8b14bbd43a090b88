"""Randomness for seeds and ids."""

import os
import struct

_BATCH = struct.Struct("64Q")


class RandomBits:
    """64 of the system's random bits a call. It is asked for many at a time, as a request needs four."""

    def __init__(self) -> None:
        self._left: list[int] = []

    def __call__(self) -> int:
        if not self._left:
            self._left = list(_BATCH.unpack(os.urandom(_BATCH.size)))
        return self._left.pop()
