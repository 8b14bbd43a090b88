"""Answers as server-sent events. It knows no parameter, no prompt and no response."""

from collections.abc import AsyncIterator, Iterable
from dataclasses import dataclass

import msgspec
from msgspec import UNSET, UnsetType

from server.api.answers import Answer, Usage
from server.api.choice import Choice, Delta
from server.api.errors import to_api_error
from server.api.event_stream import Piece
from server.api.event_template import MARK, EventTemplate
from server.api.run import Run
from server.api.shapes import Envelope, Shape
from server.api.token_tap import Taps
from server.errors import ServerError

_DONE = b"data: [DONE]\n\n"


@dataclass(frozen=True)
class StreamPlan:
    """How one streamed request is to be told."""

    envelope: Envelope
    shape: Shape
    include_usage: bool  # a last event with the usage and no choices
    continuous_usage: bool  # the usage so far in every event


class EventWriter:
    """Turns what the choices gained into bytes: one event per choice, all of a step in one piece."""

    def __init__(self, plan: StreamPlan, run: Run, taps: Taps | None = None) -> None:
        """With `taps`, what tells of a token alone may go past this."""
        self._plan = plan
        self._run = run
        self._taps = taps
        self._begun: set[int] = set()
        self._templates: dict[int, EventTemplate] = {}  # by choice, for what tells of text alone

    def step(self, touched: Iterable[int]) -> bytes:
        """The events of one engine step; empty when all it brought must still be held back."""
        events: list[bytes] = []
        for index in touched:
            choice = self._run.choices[index]
            if delta := choice.take():
                events += self._tell(index, choice, delta)
            if self._taps is not None and index in self._templates:
                self._taps.set(index, choice, self._templates[index])
        return b"".join(events)

    def ending(self) -> bytes:
        """The end of a stream in which every choice is finished."""
        if not self._plan.include_usage:
            return _DONE
        usage = self._run.usage()
        last = self._plan.envelope.wrap(self._plan.shape.chunk_object, [], usage, is_first=False)
        return _event(last) + _DONE

    def _tell(self, index: int, choice: Choice, delta: Delta) -> list[bytes]:
        if index in self._templates and delta.finish is None:
            return [self._templates[index].fill(delta.text)]
        events = self._events(index, choice, delta)
        if index not in self._begun:
            self._begun.add(index)
            self._prepare(index, choice)
        return events

    def _events(self, index: int, choice: Choice, delta: Delta) -> list[bytes]:
        shape = self._plan.shape
        events: list[bytes] = []
        for shaped in shape.chunk_choices(index, choice, delta, is_first=index not in self._begun):
            is_first = not self._begun and not events
            events.append(_event(self._plan.envelope.wrap(shape.chunk_object, [shaped], self._usage(), is_first)))
        return events

    def _prepare(self, index: int, choice: Choice) -> None:
        """Once a choice has begun, what is left of an event to encode may be no more than its text."""
        if self._plan.shape.tells_text_alone and not self._plan.continuous_usage:
            (event,) = self._events(index, choice, Delta(MARK, (), None, None))
            self._templates[index] = EventTemplate.of(event)

    def _usage(self) -> Usage | UnsetType | None:
        if self._plan.continuous_usage:
            return self._run.usage()
        return None if self._plan.include_usage else UNSET


async def first_events(run: Run, writer: EventWriter) -> bytes:
    """Wait until there is something to show, so that what fails before is an ordinary HTTP error."""
    while not (events := writer.step(await run.step())):
        pass
    return events


async def event_stream(run: Run, writer: EventWriter, first: bytes) -> AsyncIterator[Piece]:
    """`first`, then the events of every further step. A failure is the last event, and then there is no [DONE]."""
    events = first
    try:
        while not run.is_done:
            if events:
                yield events, True
            events = writer.step(await run.step())
    except ServerError as error:
        yield b"data: " + to_api_error(error).to_json() + b"\n\n", False
        return
    yield events + writer.ending(), False


def _event(answer: Answer) -> bytes:
    return b"data: " + msgspec.json.encode(answer) + b"\n\n"
