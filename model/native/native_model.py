"""A lowered model with its pages and its threads: runs a whole step in one call. Knows spans and blocks, no request."""

import ctypes
from array import array
from collections.abc import Sequence

import torch
from torch import Tensor

from model.native.abi import StepWork, check
from model.native.lowering import Lowering
from model.native.observed import Observed
from model.paged import Span


class NativeModel:
    """Runs steps of a lowered model. `instruction_set` "" takes the best this processor has.

    One session, to be used by one thread at a time: its buffers serve every step, and ctypes lets other threads of
    Python run during one. Raises NativeError for an instruction set the processor has not, threads that the system does
    not give, and a number of blocks or memory that cannot be had.
    """

    def __init__(self, lowering: Lowering, num_blocks: int, num_threads: int, instruction_set: str = "") -> None:
        self.lowering = lowering
        self._library = lowering.library
        self._session = ctypes.c_void_p()
        self._work = StepWork()  # the same for every step, as is what it says of rows: to make them anew costs as much
        self._is_finite = (ctypes.c_char * 0)()
        status = self._library.minigpt_create(
            lowering.weights, instruction_set.encode(), num_blocks, num_threads, self._session
        )
        check(self._library, status)

    def __del__(self) -> None:
        if getattr(self, "_session", None):
            self._library.minigpt_destroy(self._session)

    @property
    def instruction_set(self) -> str:
        """avx512, avx2 or portable."""
        name: bytes = self._library.minigpt_instruction_set(self._session)
        return name.decode()

    def run(
        self,
        tokens: Sequence[int],
        spans: Sequence[Span],
        wanted: Sequence[int],
        observed: Observed | None = None,
        logits: Tensor | None = None,
    ) -> tuple[Tensor, bytes]:
        """Logits [wanted, vocab] float32 of the step's rows `wanted`, and 1 for what is finite, else 0: first of every
        row's hidden state, then of the logits [rows + wanted].

        `tokens` are the spans' tokens one span after the other. Their keys and values are stored. `logits` is memory
        for the result, contiguous; without it new memory is taken. Raises NativeError for tokens, positions and blocks
        that are not there; nothing has been stored then.
        """
        num_rows, num_wanted = len(tokens), len(wanted)
        # An array takes a list faster than anything of numpy does, and a list takes another whole.
        tables: list[int] = []
        placed: list[int] = []
        for span in spans:
            blocks = span.blocks
            tables += blocks
            placed += (span.start, span.length, len(blocks))
        inputs = array("i", tokens), array("q", placed), array("i", tables), array("i", wanted)
        if logits is None:
            logits = torch.empty(num_wanted, self.lowering.config.vocab_size)
        num_told = num_rows + num_wanted
        if num_told > len(self._is_finite):
            self._is_finite = (ctypes.c_char * (2 * num_told))()
        work = self._work
        work.num_rows, work.num_spans, work.num_wanted = num_rows, len(spans), num_wanted
        work.tokens, work.spans, work.blocks, work.wanted = (values.buffer_info()[0] for values in inputs)
        work.logits = logits.data_ptr()
        work.is_finite = ctypes.addressof(self._is_finite)
        work.chosen, work.gates, work.attention = (None, None, None) if observed is None else observed.addresses
        check(self._library, self._library.minigpt_step(self._session, work))
        return logits, self._is_finite.raw[:num_told]

    def scrub(self, blocks: Sequence[int]) -> None:
        """Zero the contents of `blocks`."""
        numbers = array("i", blocks)
        self._library.minigpt_scrub(self._session, numbers.buffer_info()[0], len(numbers))
