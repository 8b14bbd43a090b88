"""The application over a fake engine, with a clock that stands still and random bits that count up from 1."""

import itertools
from dataclasses import replace
from pathlib import Path

import httpx
from fake_engine import ByteTokenizer
from fastapi import FastAPI
from starlette.types import ASGIApp

from server.admission import QueueLimits
from server.api.app import create_app
from server.api.engine_port import Engine
from server.api.instruments import Instruments
from server.api.served_model import ServedModel
from server.api.settings import ApiSettings
from server.engine.config import EngineConfig
from server.timeline import Timeline

NOW = 1_700_000_000
QUEUE = QueueLimits(512, 576)
MODEL = ServedModel("tiny", Path("tiny"), ByteTokenizer(), None, NOW - 1000)


def make_app(
    engine: Engine,
    model: ServedModel = MODEL,
    settings: ApiSettings | None = None,
    timeline: Timeline | None = None,
) -> FastAPI:
    counter = itertools.count(1)
    return create_app(
        engine,
        [model],
        settings or ApiSettings(),
        Instruments(lambda: b"# metrics\n", timeline or Timeline([model.name]), QUEUE, EngineConfig()),
        clock=lambda: NOW + 0.5,
        random_bits=lambda: next(counter),
    )


def with_template(source: str) -> ServedModel:
    return replace(MODEL, chat_template=source)


def client_of(app: ASGIApp, **headers: str) -> httpx.AsyncClient:
    return httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://tiny", headers=headers)
