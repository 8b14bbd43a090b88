"""A lowered model with its pages and its threads: runs a whole step in one call. Knows spans and blocks, no request."""

import ctypes
from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from model.native.abi import StepWork
from model.native.lowering import Lowering
from model.paged import Span

_SPAN = np.dtype([(name, np.int64) for name in ("first_row", "length", "start", "num_blocks", "blocks")])


class NativeError(RuntimeError):
    """The library refused; the message is its own."""


class NativeModel:
    """Runs steps of a lowered model. `instruction_set` "" takes the best this processor has.

    Raises NativeError for an instruction set it has not.
    """

    def __init__(self, lowering: Lowering, num_blocks: int, num_threads: int, instruction_set: str = "") -> None:
        self.lowering = lowering
        self._library = lowering.library
        self._session = ctypes.c_void_p()
        self._check(
            self._library.minigpt_create(
                lowering.weights, instruction_set.encode(), num_blocks, num_threads, self._session
            )
        )

    def __del__(self) -> None:
        if getattr(self, "_session", None):
            self._library.minigpt_destroy(self._session)

    @property
    def instruction_set(self) -> str:
        """avx512, avx2 or portable."""
        name: bytes = self._library.minigpt_instruction_set(self._session)
        return name.decode()

    def run(
        self, tokens: Sequence[int], spans: Sequence[Span], wanted: Sequence[int]
    ) -> tuple[Tensor, NDArray[np.bool_]]:
        """Logits [wanted, vocab] float32 of the step's rows `wanted`, and per row whether it is finite.

        `tokens` are the spans' tokens one span after the other. Their keys and values are stored. Raises NativeError
        for tokens, positions and blocks that are not there; nothing has been stored then.
        """
        lengths = np.fromiter((span.length for span in spans), np.int64, len(spans))
        starts = np.fromiter((span.start for span in spans), np.int64, len(spans))
        first_rows = np.cumsum(lengths) - lengths
        flat = np.asarray(tokens, dtype=np.int32)
        positions = (np.arange(len(flat)) + np.repeat(starts - first_rows, lengths)).astype(np.int32)
        table_lengths = [len(span.blocks) for span in spans]
        blocks = np.fromiter((block for span in spans for block in span.blocks), np.int32, sum(table_lengths))
        table = np.empty(len(spans), dtype=_SPAN)
        table["first_row"], table["length"], table["start"] = first_rows, lengths, starts
        table["num_blocks"] = table_lengths
        table["blocks"] = blocks.ctypes.data + blocks.itemsize * (np.cumsum(table_lengths) - table_lengths)
        rows = np.asarray(wanted, dtype=np.int32)
        logits = torch.empty(len(rows), self.lowering.config.vocab_size)
        is_finite = np.empty(len(flat), dtype=np.bool_)
        work = StepWork(
            num_rows=len(flat),
            num_spans=len(spans),
            num_wanted=len(rows),
            tokens=flat.ctypes.data,
            positions=positions.ctypes.data,
            spans=table.ctypes.data,
            wanted=rows.ctypes.data,
            logits=logits.data_ptr(),
            is_finite=is_finite.ctypes.data,
        )
        self._check(self._library.minigpt_step(self._session, work))
        return logits, is_finite

    def scrub(self, blocks: Sequence[int]) -> None:
        """Zero the contents of `blocks`."""
        numbers = np.asarray(blocks, dtype=np.int32)
        self._library.minigpt_scrub(self._session, numbers.ctypes.data, len(numbers))

    def _check(self, status: int) -> None:
        if status:
            message: bytes = self._library.minigpt_error()
            raise NativeError(message.decode())
