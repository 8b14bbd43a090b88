"""One client request while it is open: what has arrived for it and not been read. Knows neither wire nor engine."""

import asyncio
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from server.engine.types import SequenceOutput
from server.errors import EngineFailed
from server.records import Outcome

Delivered = tuple[int, SequenceOutput]
"""A sequence's index in its generation, and what a step added to it."""

Tap = Callable[[Sequence[int]], int]
"""Takes the first of some tokens, as many as it returns, and leaves the others to the reader."""


@dataclass(slots=True, eq=False)
class OpenSequence:
    """A sequence on its way. Written by the client as reports arrive; `outcome` is set once, when it ends."""

    wire_id: int
    model: int
    generation: "Generation"
    index: int
    num_prompt_tokens: int
    arrived_at: float
    scheduled_at: float | None = None
    first_token_at: float | None = None
    last_token_at: float = 0.0
    num_output_tokens: int = 0
    outcome: Outcome | None = None
    tap: Tap | None = None  # there while it may take


class Generation:
    """The sequences of one request. Iterate for their outputs, and always close.

    `end(sequence, outcome)` is called for each sequence that the reader ends, `closed(generation)` once.
    """

    def __init__(
        self, end: Callable[[OpenSequence, Outcome], None], closed: Callable[["Generation"], None], arrived_at: float
    ) -> None:
        self.sequences: list[OpenSequence] = []
        self.num_unfinished = 0
        self.arrived_at = arrived_at
        self._end = end
        self._closed = closed
        self._is_closed = False
        self._failure: str | None = None
        self._unread: list[Delivered] = []
        self._taps: dict[int, Tap] = {}
        # A bare future where an Event would do: this is done for every stream in every step.
        self._loop = asyncio.get_running_loop()
        self._waiting: asyncio.Future[None] | None = None

    def __aiter__(self) -> "Generation":
        return self

    async def __anext__(self) -> list[Delivered]:
        while not self._unread:
            if self._failure is not None:
                raise EngineFailed(self._failure)
            if self.num_unfinished == 0:
                raise StopAsyncIteration
            self._waiting = self._loop.create_future()
            for index, take in self._taps.items():
                self.sequences[index].tap = take
            await self._waiting
        unread, self._unread = self._unread, []
        return unread

    def tap(self, index: int, take: Tap | None) -> None:
        """While the reader waits, from its next wait on, offer `take` each output of a sequence that is only tokens.

        What it takes the reader never sees: such a token costs no turn of the reader's task.
        """
        self.sequences[index].tap = None
        self._taps.pop(index, None)
        if take is not None:
            self._taps[index] = take

    def stop(self, index: int) -> None:
        """The reader needs no more of this sequence. One that has ended already keeps its outcome."""
        self._unread = [delivered for delivered in self._unread if delivered[0] != index]
        self._end_if_open(self.sequences[index], "stop")

    def close(self) -> None:
        """Abort what has not finished. Idempotent."""
        if self._is_closed:
            return
        self._is_closed = True
        self._unread = []
        for sequence in self.sequences:
            self._end_if_open(sequence, "abort")
        self._closed(self)

    def join(self, sequence: OpenSequence) -> None:
        """Add a sequence; its index is its place."""
        self.sequences.append(sequence)
        self.num_unfinished += 1

    def deliver(self, index: int, output: SequenceOutput) -> None:
        """Queue an output. However many come in one turn of the loop, the reader wakes once."""
        self._unread.append((index, output))
        if self._waiting is not None:
            self._wake()

    def finish_one(self) -> None:
        """One of the sequences has ended, for whatever reason."""
        self.num_unfinished -= 1
        self._wake()

    def fail(self, reason: str) -> None:
        """The reader gets what has arrived, then EngineFailed. To be called before the sequences are ended."""
        self._failure = reason

    def _wake(self) -> None:
        waiting, self._waiting = self._waiting, None
        if waiting is None:
            return
        for index in self._taps:
            self.sequences[index].tap = None
        if not waiting.done():  # it is done where its reader was cancelled
            waiting.set_result(None)

    def _end_if_open(self, sequence: OpenSequence, outcome: Outcome) -> None:
        if sequence.outcome is None:
            self._end(sequence, outcome)
