"""A lowered model with its pages and its threads: runs a whole step in one call. Knows spans and blocks, no request."""

import ctypes
from array import array
from collections.abc import Collection, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from model.native.abi import DecodeWork, StepWork, check
from model.native.lowering import Lowering
from model.native.observed import Observed
from model.paged import Span


class Draws(NamedTuple):
    """How tokens are chosen in steps that follow each other: for each sequence its parameters as the library reads
    them, `DrawProgram` of `csrc/draw.h`, and the tokens that end it."""

    programs: Sequence[bytes]
    endings: Sequence[Collection[int]]


class Limit(NamedTuple):
    """How long steps follow each other: so many at most, and no further one once the seconds have gone by or something
    has come to the watched descriptor."""

    num_passes: int
    seconds: float
    watched: int = -1  # none


class Decoded(NamedTuple):
    """What steps in a row came to. Logits and `is_finite` are the last one's."""

    tokens: list[int]  # [passes that chose, sequences]
    num_passes: int  # those that chose, and a last one that is not finite, if there was one
    forward_seconds: float
    choose_seconds: float
    logits: Tensor  # [sequences, vocab] float32
    is_finite: bytes  # as of `NativeModel.run`


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
        # The same for every step, as is what they say of rows: to make them anew costs as much.
        self._work = StepWork()
        self._decode_work = DecodeWork()
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
        row's hidden state, keys and values, then of the logits [rows + wanted]. Rows that are neither wanted nor
        observed go no further than the last layer's keys and values.

        `tokens` are the spans' tokens one span after the other. Their keys and values are stored. `logits` is memory
        for the result, contiguous; without it new memory is taken. Raises NativeError for tokens, positions and blocks
        that are not there; nothing has been stored then.
        """
        if logits is None:
            logits = torch.empty(len(wanted), self.lowering.config.vocab_size)
        work = self._work
        inputs = self._describe(work, tokens, spans, wanted, logits)
        work.chosen, work.gates, work.attention = (None, None, None) if observed is None else observed.addresses
        check(self._library, self._library.minigpt_step(self._session, work))
        del inputs  # which the work only points to
        return logits, self._is_finite.raw[: len(tokens) + len(wanted)]

    def decode(
        self, tokens: Sequence[int], spans: Sequence[Span], draws: Draws, limit: Limit, logits: Tensor
    ) -> Decoded:
        """Steps in a row, in each of which every sequence gets its next token: until one has ended, numbers are not
        finite, or the limit is reached.

        `tokens` are the sequences' latest, `spans` of one token each; their block tables must have room for all steps.
        `logits` [sequences, vocab] is memory for each step's. Raises NativeError as `run` does.
        """
        count = len(tokens)
        work = self._decode_work
        inputs = self._describe(work.step, tokens, spans, range(count), logits)
        endings = array("q", [token for those in draws.endings for token in those])
        num_endings = array("q", map(len, draws.endings))
        chosen = array("q", bytes(8 * count * limit.num_passes))
        work.programs = b"".join(draws.programs)
        work.endings, work.num_endings, work.chosen = (
            values.buffer_info()[0] for values in (endings, num_endings, chosen)
        )
        work.most_passes, work.seconds, work.watched = limit
        check(self._library, self._library.minigpt_decode(self._session, work))
        del inputs  # which the work only points to
        taken = chosen[: work.num_chosen * count].tolist()
        spent = work.num_passes, work.forward_seconds, work.choose_seconds
        return Decoded(taken, *spent, logits, self._is_finite.raw[: 2 * count])

    def _describe(
        self, work: StepWork, tokens: Sequence[int], spans: Sequence[Span], wanted: Sequence[int], logits: Tensor
    ) -> "tuple[array[int], ...]":
        """Tell the library what to compute, and where to. The arrays returned hold what `work` points to."""
        # An array takes a list faster than anything of numpy does, and a list takes another whole.
        tables: list[int] = []
        placed: list[int] = []
        for span in spans:
            blocks = span.blocks
            tables += blocks
            placed += (span.start, span.length, len(blocks))
        inputs = array("i", tokens), array("q", placed), array("i", tables), array("i", wanted)
        num_told = len(tokens) + len(wanted)
        if num_told > len(self._is_finite):
            self._is_finite = (ctypes.c_char * (2 * num_told))()
        work.num_rows, work.num_spans, work.num_wanted = len(tokens), len(spans), len(wanted)
        work.tokens, work.spans, work.blocks, work.wanted = (values.buffer_info()[0] for values in inputs)
        work.logits = logits.data_ptr()
        work.is_finite = ctypes.addressof(self._is_finite)
        return inputs

    def scrub(self, blocks: Sequence[int]) -> None:
        """Zero the contents of `blocks`."""
        numbers = array("i", blocks)
        self._library.minigpt_scrub(self._session, numbers.buffer_info()[0], len(numbers))
