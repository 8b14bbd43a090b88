"""The application: routes, middleware and the error handler put together. It starts nothing."""

import time
from collections.abc import Callable, Sequence
from importlib.metadata import PackageNotFoundError, version

from fastapi import APIRouter, FastAPI
from fastapi.routing import APIRoute
from starlette.exceptions import HTTPException
from starlette.middleware.errors import ServerErrorMiddleware
from starlette.types import ASGIApp, Receive, Scope, Send

from server.api.auth import BearerAuth
from server.api.body_bounds import BodyBounds
from server.api.chat import chat_router
from server.api.chat_template import ChatTemplate
from server.api.compare import compare_router
from server.api.compare_request import CompareRequest
from server.api.completions import completions_router
from server.api.direct_routes import DirectRoutes, Endpoint
from server.api.direct_send import keep_direct_send
from server.api.engine_port import Engine
from server.api.errors import respond_to_error
from server.api.health import health_router
from server.api.inside import inside_router
from server.api.instruments import Instruments
from server.api.models import models_router
from server.api.openapi import DocumentedApp
from server.api.random_bits import RandomBits
from server.api.request_id import RequestId
from server.api.schemas import CompletionRequest
from server.api.schemas_chat import ChatRequest
from server.api.served_model import ServedModel
from server.api.service import Service
from server.api.settings import MAX_BYTES_BEING_READ, READ_BODY_SECONDS, ApiSettings
from server.api.tokenization import DetokenizeRequest, TokenizeRequest, tokenization_router
from server.errors import ServerError


class Application(DocumentedApp):
    """The outermost layer: the framework's application behind layers of our own, which it does not know."""

    layers: ASGIApp

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        keep_direct_send(scope, send)
        await self.layers(scope, receive, send)

    async def framework(self, scope: Scope, receive: Receive, send: Send) -> None:
        """The application as it would be without them."""
        await super().__call__(scope, receive, send)


def create_app(
    engine: Engine,
    models: Sequence[ServedModel],
    settings: ApiSettings,
    instruments: Instruments,
    clock: Callable[[], float] = time.time,
    random_bits: Callable[[], int] | None = None,
) -> FastAPI:
    """The HTTP side of one server. `random_bits` gives 64 bits: seeds of requests without one, and ids; by default the
    system's.

    Raises ValueError when there is no model, two share a name, or a chat template is not valid.
    """
    if not models or len({model.name for model in models}) != len(models):
        raise ValueError("there must be at least one model, and no two of one name")
    random_bits = random_bits or RandomBits()
    service = Service(
        engine=engine,
        models={model.name: model for model in models},
        templates={model.name: ChatTemplate(model.chat_template, model.special_tokens, clock) for model in models},
        settings=settings,
        version=_package_version(),
        clock=clock,
        random_bits=random_bits,
    )
    app = Application(
        title="Mini-GPT server",
        version=service.version,
        docs_url=None,  # the pages load their scripts from elsewhere
        redoc_url=None,
        redirect_slashes=False,
        exception_handlers=dict.fromkeys((ServerError, HTTPException, Exception), respond_to_error),
    )
    generating = (completions_router(service), chat_router(service))
    for router in (
        *generating,
        compare_router(service),
        models_router(service),
        tokenization_router(service),
        health_router(service, instruments.metrics_text),
        inside_router(service, instruments),
    ):
        app.include_router(router)
    app.bodies = (CompletionRequest, ChatRequest, CompareRequest, TokenizeRequest, DetokenizeRequest)
    app.layers = _layers(DirectRoutes(_endpoints(generating), app.framework), settings, random_bits)
    return app


def _endpoints(routers: Sequence[APIRouter]) -> dict[str, Endpoint]:
    """By path, what takes a request and gives the response."""
    routes = [route for router in routers for route in router.routes]
    return {route.path: route.endpoint for route in routes if isinstance(route, APIRoute)}


def _layers(app: ASGIApp, settings: ApiSettings, random_bits: Callable[[], int]) -> ASGIApp:
    """What every request passes through on its way to `app`, from the inside out."""
    app = BodyBounds(app, MAX_BYTES_BEING_READ, READ_BODY_SECONDS)
    app = BearerAuth(app, settings.api_keys)
    app = ServerErrorMiddleware(app, respond_to_error)  # what nobody else catches
    return RequestId(app, random_bits)


def _package_version() -> str:
    try:
        return version("minigpt")
    except PackageNotFoundError:  # run from a checkout that was never installed
        return "unknown"
