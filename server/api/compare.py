"""POST /v1/compare: one prompt decoded by several strategies at once."""

import time
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass

import msgspec
from fastapi import APIRouter
from starlette.requests import Request
from starlette.responses import Response

from server.api.body import read_json_object
from server.api.compare_answers import CompareAnswer, StrategyAnswer
from server.api.compare_lane import Lane, LanePlan
from server.api.compare_plan import plan_lanes
from server.api.compare_request import CompareRequest, read_compare_request
from server.api.compare_run import CompareRun
from server.api.departure import unless_client_leaves
from server.api.errors import to_api_error
from server.api.event_stream import EventStream, Piece
from server.api.openapi import json_body
from server.api.recent import RecentAnswer
from server.api.service import Service
from server.errors import ServerError


def compare_router(service: Service, clock: Callable[[], float] = time.monotonic) -> APIRouter:
    """`clock` gives seconds that never go back."""
    router = APIRouter()

    @router.post("/v1/compare", openapi_extra=json_body(CompareRequest))
    async def compare(request: Request) -> Response:
        """Decode one prompt by several strategies, and measure the answers."""
        asked = read_compare_request(await read_json_object(request, service.settings.max_body_bytes))
        model = service.find_model(asked.model)
        plans = await plan_lanes(service, model, asked, getattr(request.state, "tenant", ""))
        cover = _Cover(service.new_id("compare"), int(service.clock()), model.name, service.system_fingerprint(model))
        with ExitStack() as stack:
            generation = service.engine.open(model.name, [plan.sequence for plan in plans], cover.id)
            stack.callback(generation.close)
            run = CompareRun(plans, generation, clock)
            if not asked.stream:
                await unless_client_leaves(request, _finish(run))
                _remember(service, cover, plans)
                return await _whole(run, cover)

            async def begin() -> AsyncIterator[Piece]:
                first = await _first_events(run, cover)
                return _events(run, cover, first, lambda: _remember(service, cover, plans))

            stack.pop_all()
            return EventStream(begin, generation.close)

    return router


@dataclass(frozen=True)
class _Cover:
    """What is the same in every part of one answer."""

    id: str
    created: int
    model: str
    system_fingerprint: str

    def chunk(self, strategies: Sequence[StrategyAnswer]) -> CompareAnswer:
        return CompareAnswer(self.id, "compare.chunk", self.created, self.model, strategies, self.system_fingerprint)

    async def ending(self, run: CompareRun, strategies: Sequence[StrategyAnswer], is_whole: bool) -> CompareAnswer:
        """The whole answer, or the end of a streamed one."""
        answer = self.chunk(strategies)
        answer.object = "compare" if is_whole else "compare.chunk"
        answer.pairs, answer.usage = await run.pairs(), run.usage()
        return answer


async def _whole(run: CompareRun, cover: _Cover) -> Response:
    strategies = [answer for lane in run.lanes if (answer := lane.take()) is not None]
    whole = await cover.ending(run, strategies, is_whole=True)
    return Response(msgspec.json.encode(whole), media_type="application/json")


async def _finish(run: CompareRun) -> None:
    while not run.is_done:
        await run.step()


async def _first_events(run: CompareRun, cover: _Cover) -> bytes:
    """Wait until there is something to show, so that what fails before is an ordinary HTTP error."""
    while not (events := _write(await run.step(), cover)):
        pass
    return events


async def _events(run: CompareRun, cover: _Cover, first: bytes, on_done: Callable[[], None]) -> AsyncIterator[Piece]:
    """`first`, the events of every further step, and the comparison itself. A failure of the whole is the last event,
    and then there is no [DONE]."""
    yield first, True
    try:
        while not run.is_done:
            if events := _write(await run.step(), cover):
                yield events, True
    except ServerError as error:
        yield b"data: " + to_api_error(error).to_json() + b"\n\n", False
        return
    on_done()
    yield _event(await cover.ending(run, [], is_whole=False)) + b"data: [DONE]\n\n", False


def _write(touched: Sequence[Lane], cover: _Cover) -> bytes:
    """An event for each strategy that has something new to tell."""
    answers = (lane.take() for lane in touched)
    return b"".join(_event(cover.chunk([answer])) for answer in answers if answer is not None)


def _event(answer: CompareAnswer) -> bytes:
    return b"data: " + msgspec.json.encode(answer) + b"\n\n"


def _remember(service: Service, cover: _Cover, plans: Sequence[LanePlan]) -> None:
    """For forks of this answer."""
    outputs = [plan.choice.token_ids for plan in plans]
    service.recent.keep(cover.id, RecentAnswer.of(cover.model, [plan.sequence for plan in plans], outputs))
