"""Health, version and metrics: what operators and load balancers ask. It knows no model's contents."""

from collections.abc import Callable

import msgspec
from fastapi import APIRouter
from starlette.responses import Response

from server.api.service import Service

# Prometheus's text format, which the metrics are rendered in.
_METRICS_TYPE = "text/plain; version=0.0.4; charset=utf-8"


def health_router(service: Service, metrics_text: Callable[[], bytes]) -> APIRouter:
    router = APIRouter()

    @router.head("/health/live", include_in_schema=False)  # load balancers often send HEAD
    @router.get("/health/live")
    async def live() -> Response:
        """200 as long as the process answers at all."""
        return _json({"status": "live"})

    @router.head("/health", include_in_schema=False)
    @router.head("/health/ready", include_in_schema=False)
    @router.get("/health")
    @router.get("/health/ready")
    async def ready() -> Response:
        """200 when a request sent now would be taken, else 503 with the reasons."""
        reasons = _reasons_against(service)
        if reasons:
            return _json({"status": "not ready", "reasons": reasons}, 503)
        return _json({"status": "ready"})

    @router.get("/version")
    async def version() -> Response:
        return _json({"version": service.version})

    @router.get("/metrics")
    async def metrics() -> Response:
        return Response(metrics_text(), headers={"content-type": _METRICS_TYPE})

    return router


def _reasons_against(service: Service) -> list[str]:
    known = service.engine.models()
    reasons = [f"the model {name} is not loaded" for name in service.models if name not in known]
    if not service.engine.is_ready() and not reasons:
        reasons.append("the engine takes no requests: it is restarting or shutting down")
    return reasons


def _json(value: object, status: int = 200) -> Response:
    return Response(msgspec.json.encode(value), status, media_type="application/json")
