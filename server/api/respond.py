"""A prepared request to an HTTP response, whole or streamed, for completions and chat alike. It knows no parameter."""

from collections.abc import AsyncIterator
from contextlib import ExitStack
from dataclasses import dataclass

import msgspec
from starlette.requests import Request
from starlette.responses import Response

from server.api.admission import Prepared
from server.api.departure import unless_client_leaves
from server.api.direct_send import direct_body
from server.api.event_stream import EventStream, Piece
from server.api.recent import RecentAnswer
from server.api.run import Run
from server.api.schemas import GenerationRequest
from server.api.schemas_chat import ChatRequest
from server.api.served_model import ServedModel
from server.api.service import Service
from server.api.shapes import Envelope, Shape
from server.api.streaming import EventWriter, StreamPlan, event_stream, first_events
from server.api.token_tap import Taps
from server.errors import BadRequest


@dataclass(frozen=True)
class Answering:
    """Everything needed to answer one request."""

    service: Service
    model: ServedModel
    asked: GenerationRequest
    prepared: Prepared
    shape: Shape


def check_stream_options(asked: GenerationRequest) -> None:
    """Raises BadRequest for options of a stream that is not asked for."""
    if asked.stream_options is not None and not asked.stream:
        raise BadRequest(
            "stream_options is set but stream is not true; it applies to streams only.",
            "stream_options",
            "invalid_value",
        )


async def respond(request: Request, answering: Answering) -> Response:
    """Open the generation, and see that it is closed, here or by the stream that is returned, which has yet to begin.

    Raises what `Engine.open` and the run raise, and ClientLeft.
    """
    service, prepared = answering.service, answering.prepared
    envelope = _envelope(answering)
    with ExitStack() as stack:
        generation = service.engine.open(answering.model.name, prepared.sequences, envelope.id)
        stack.callback(generation.close)
        run = Run(prepared.admitted, generation, prepared.choices, lambda: _remember(answering, envelope.id))
        if not answering.asked.stream:
            return await _whole(request, run, envelope, answering.shape)
        body = direct_body(request.scope)
        taps = None if body is None else Taps(generation, answering.model.whole_texts, body)
        writer = EventWriter(_plan(answering, envelope), run, taps)

        async def begin() -> AsyncIterator[Piece]:
            first = await first_events(run, writer)
            return event_stream(run, writer, first)

        stack.pop_all()
        return EventStream(begin, generation.close)


async def _whole(request: Request, run: Run, envelope: Envelope, shape: Shape) -> Response:
    await unless_client_leaves(request, _finish(run))
    choices = [shape.whole_choice(index, choice, choice.take()) for index, choice in enumerate(run.choices)]
    answer = envelope.wrap(shape.whole_object, choices, run.usage(), is_first=True)
    return Response(msgspec.json.encode(answer), media_type="application/json")


async def _finish(run: Run) -> None:
    while not run.is_done:
        await run.step()


def _remember(answering: Answering, id_: str) -> None:
    """For forks of this answer."""
    prepared = answering.prepared
    outputs = [choice.token_ids for choice in prepared.choices]
    answering.service.recent.keep(id_, RecentAnswer.of(answering.model.name, prepared.sequences, outputs))


def _envelope(answering: Answering) -> Envelope:
    service, asked = answering.service, answering.asked
    return Envelope(
        id=service.new_id("chatcmpl" if isinstance(asked, ChatRequest) else "cmpl"),
        created=int(service.clock()),
        model=answering.model.name,
        system_fingerprint=service.system_fingerprint(answering.model),
        parameters=answering.prepared.admitted.in_force if asked.return_parameters else None,
    )


def _plan(answering: Answering, envelope: Envelope) -> StreamPlan:
    options = answering.asked.stream_options
    return StreamPlan(
        envelope=envelope,
        shape=answering.shape,
        include_usage=bool(options and options.include_usage),
        continuous_usage=bool(options and options.continuous_usage_stats),
    )
