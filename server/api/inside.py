"""GET /v1/engine/blocks, /v1/engine/timeline and /v1/limits: what the server is doing, and what it allows.

A key's holder sees his own sequences and hashes. Of everybody else he sees how much they hold, never what.
"""

from collections.abc import Mapping, Sequence

import msgspec
from anyio import CapacityLimiter
from anyio.to_thread import run_sync
from fastapi import APIRouter
from starlette.requests import Request
from starlette.responses import Response

from server.api.instruments import Instruments
from server.api.json_guard import shown
from server.api.limits import MAX_LISTED, all_limits
from server.api.service import Service
from server.engine.inspection import Inspection, PrefixBlock, SequenceBlocks
from server.engine.types import StepStats
from server.errors import BadRequest
from server.timeline import MAX_SECONDS, View, trace_events

DEFAULT_SECONDS = 10
DEFAULT_LISTED = 256


def inside_router(service: Service, instruments: Instruments) -> APIRouter:
    router = APIRouter()
    one_at_a_time = CapacityLimiter(1)  # a long timeline is some hundred milliseconds of a core

    @router.get("/v1/engine/blocks")
    async def blocks(request: Request) -> Response:
        """Who holds which KV block, and the prefix tree."""
        asked = _read_query(request, ("model", "limit"))
        model = service.find_model(asked.get("model")).name
        limit = _read_number(asked, "limit", DEFAULT_LISTED, MAX_LISTED)
        inspection = await service.engine.inspect(model, salt_prefix(_tenant(request)), limit)
        return _json(_describe(service, model, inspection))

    @router.get("/v1/engine/timeline")
    async def timeline(request: Request) -> Response:
        """The engine's last steps as a Chrome trace."""
        asked = _read_query(request, ("model", "seconds"))
        model = service.find_model(asked.get("model")).name
        seconds = _read_number(asked, "seconds", DEFAULT_SECONDS, int(MAX_SECONDS))
        steps = instruments.timeline.recent(model, seconds)
        view = View(service.engine.find_origin, salt_prefix(_tenant(request)))
        thread = 1 + list(service.models).index(model)
        body = await run_sync(_write_trace, model, thread, steps, view, limiter=one_at_a_time)
        return Response(body, media_type="application/json")

    @router.get("/v1/limits")
    async def limits(request: Request) -> Response:
        """Every limit in force."""
        _read_query(request, ())
        return _json(all_limits(service, instruments))

    return router


def salt_prefix(tenant: str) -> str:
    """How the cache salts of a tenant's sequences begin, and of nobody else's, see `admission.cache_salt`.

    With one key or none everybody is the same tenant, "", and every salt is his.
    """
    return f"{tenant}|" if tenant else ""


def _tenant(request: Request) -> str:
    return str(getattr(request.state, "tenant", ""))


def _read_query(request: Request, known: Sequence[str]) -> Mapping[str, str]:
    """Raises BadRequest for a parameter that is unknown or comes twice."""
    asked: dict[str, str] = {}
    for name, value in request.query_params.multi_items():
        parameter = name[:80]
        if name not in known:
            raise BadRequest(f"Unknown parameter: {shown(parameter)}.", parameter, "unknown_parameter")
        if name in asked:
            raise BadRequest(f"{name} is given twice; it must be given once.", name, "invalid_value")
        asked[name] = value
    return asked


def _read_number(asked: Mapping[str, str], name: str, default: int, most: int) -> int:
    """Raises BadRequest for what is not an integer between 1 and `most`."""
    text = asked.get(name, str(default))
    if text.isascii() and text.isdecimal() and len(text) <= 10 and 1 <= int(text) <= most:
        return int(text)
    raise BadRequest(f"{name} is {shown(text)}; it must be an integer between 1 and {most}.", name, "invalid_value")


def _describe(service: Service, model: str, inspection: Inspection) -> dict[str, object]:
    own = [_describe_sequence(service, sequence) for sequence in inspection.sequences]
    others = [{"owner": "other", "num_blocks": count} for count in inspection.others]
    return {
        "object": "engine.blocks",
        "model": model,
        "blocks": {
            "total": inspection.num_blocks,
            "free": inspection.num_free,
            "cached": inspection.num_cached,
            "referenced": inspection.num_referenced,
        },
        "num_sequences": inspection.num_sequences + inspection.num_other_sequences,
        "sequences": [*own, *others],
        "num_prefix_blocks": inspection.num_prefix_blocks,
        "prefix_tree": [_describe_prefix_block(entry) for entry in inspection.prefix_blocks],
    }


def _describe_sequence(service: Service, sequence: SequenceBlocks) -> dict[str, object]:
    """A sequence the engine made itself, such as the negative prompt's, belongs to no answer: its id is null."""
    origin = service.engine.find_origin(sequence.id)
    return {
        "owner": "self",
        "id": origin.answer_id if origin else None,
        "index": origin.index if origin else None,
        "state": "running" if sequence.is_running else "waiting",
        "prompt_tokens": sequence.num_prompt_tokens,
        "output_tokens": sequence.num_output_tokens,
        "computed_tokens": sequence.num_computed_tokens,
        "num_blocks": sequence.num_blocks,
        "blocks": sequence.blocks,
    }


def _describe_prefix_block(entry: PrefixBlock) -> dict[str, object]:
    return {
        "hash": entry.content.hex(),
        "parent": None if entry.parent is None else entry.parent.hex(),
        "block": entry.block,
        "references": entry.num_references,
        "eviction_rank": entry.eviction_rank,
    }


def _write_trace(model: str, thread: int, steps: Sequence[StepStats], view: View) -> bytes:
    """In pieces: encoding holds the interpreter, and the event loop must get its turns."""
    pieces = [msgspec.json.encode(events)[1:-1] for events in trace_events(model, thread, steps, view)]
    return b'{"displayTimeUnit":"ms","traceEvents":[' + b",\n".join(pieces) + b"]}\n"


def _json(value: object) -> Response:
    return Response(msgspec.json.encode(value), media_type="application/json")
