"""Chooses tokens by the native library, all rows in one call, and gets the tokens that torch would have chosen.

Constraints and the rarer stages are torch's; it works on a copy of the rows that ask for them, and the draw is native.
"""

from array import array
from collections.abc import Sequence
from ctypes import CDLL, addressof, c_int64

import numpy as np
import torch
from torch import Tensor

from model.native.abi import check
from server.engine.sampler import choose
from server.engine.sampling.constraints import constrain, is_constrained
from server.engine.sampling.program import draw_alone, looks_back
from server.engine.sampling.row import Observe, Row, observe_nothing

_NO_HISTORY = (0, 0, 0, 0)


class NativeSampler:
    """A `verify.Choose` for logits in the processor's memory."""

    def __init__(self, library: CDLL) -> None:
        self._library = library
        self._choose = library.minigpt_choose
        self._chosen = (c_int64 * 64)()  # the same for every call: to make them anew costs more than a draw

    def __call__(
        self, logits: Tensor, places: Sequence[int], rows: Sequence[Row], observe: Observe = observe_nothing
    ) -> list[int]:
        """See `verify.Choose`."""
        if observe is not observe_nothing:
            return choose(logits[places], rows, observe)
        programs = [None if is_constrained(row) else row.params.program for row in rows]
        plain = [program for program in programs if program is not None]
        if len(plain) == len(rows):
            return self._run(logits, places, rows, plain)
        tokens = np.empty(len(rows), dtype=np.int64)
        is_plain = np.array([program is not None for program in programs])
        for indices, decide in ((np.flatnonzero(is_plain), self), (np.flatnonzero(~is_plain), self._decide_copied)):
            members = indices.tolist()
            tokens[indices] = decide(logits, [places[i] for i in members], [rows[i] for i in members])
        return [int(token) for token in tokens]

    def draw(self, logits: Tensor, rows: Sequence[Row]) -> list[int]:
        """The draw alone, from logits [rows, vocab] that all stages have been applied to."""
        return self._tokens(
            logits, range(len(rows)), rows, [draw_alone(row.params.seed, row.params.is_greedy) for row in rows]
        )

    def _decide_copied(self, logits: Tensor, places: Sequence[int], rows: Sequence[Row]) -> list[int]:
        """Rows with constraints, or with stages that only torch has."""
        copied = logits[places]
        programs = [row.params.program for row in rows]
        known = [program for program in programs if program is not None]
        if len(known) < len(rows):
            return choose(copied, rows, draw=self.draw)
        for own, row in zip(copied, rows, strict=True):
            constrain(own, row)
        return self._run(copied, range(len(rows)), rows, known)

    def _run(self, logits: Tensor, places: Sequence[int], rows: Sequence[Row], programs: Sequence[bytes]) -> list[int]:
        tokens = self._tokens(logits, places, rows, programs)
        for row, token in zip(rows, tokens, strict=True):
            if row.state is not None:
                row.state.append(token)
        return tokens

    def _tokens(
        self, logits: Tensor, places: Sequence[int], rows: Sequence[Row], programs: Sequence[bytes]
    ) -> list[int]:
        assert logits.dtype == torch.float32
        assert logits.is_contiguous()
        num_rows = len(rows)
        table: list[int] = []  # of `DrawRow`: row, position, history; an array takes a list faster than numpy does
        for place, row, program in zip(places, rows, programs, strict=True):
            table += (place, row.position)
            table += row.state.history() if row.state is not None and looks_back(program) else _NO_HISTORY
        packed, words = b"".join(programs), array("q", table)
        if num_rows > len(self._chosen):
            self._chosen = (c_int64 * (2 * num_rows))()
        status = self._choose(
            logits.data_ptr(), logits.shape[1], num_rows, words.buffer_info()[0], packed, addressof(self._chosen)
        )
        check(self._library, status)
        return self._chosen[:num_rows]
