"""Builds the HTTP process's half of the server and runs it: the part of the composition root that needs the HTTP stack.

It is apart from `__main__` because importing that stack takes a second, in which the engine process can already load.
"""

import asyncio
import gc
import socket
from itertools import chain
from pathlib import Path

import uvloop

from model.tokenizer import Tokenizer
from server.api.app import create_app
from server.api.instruments import Instruments
from server.api.served_model import ServedModel, load_served_model
from server.config import ServerConfig
from server.engine_client import EngineClient
from server.errors import CannotStart
from server.lifetime import Lifetime, build_http_server
from server.metrics import Metrics
from server.protocol import Configure, ModelSource
from server.supervisor import EngineChild, RestartPolicy, Supervisor, start_children
from server.timeline import Timeline

# New objects between two collections in this process.
YOUNG_OBJECTS = 20_000


def serve(
    config: ServerConfig,
    configure: Configure,
    api_keys: tuple[str, ...],
    listener: socket.socket,
    first_child: EngineChild,
    started_at: float,
) -> int:
    """Serve until told to stop; returns the exit code. Raises CannotStart or EngineGivenUp."""
    names = [source.name for source in configure.models]
    metrics = Metrics(names)
    timeline = Timeline(names)
    client = EngineClient(names, config.queue_limits(), [metrics, timeline])
    instruments = Instruments(metrics.render, timeline, config.queue_limits(), config.engine)
    models = [_served_model(source) for source in configure.models]
    try:
        settings = config.api_settings(api_keys)
    except ValueError as error:
        raise CannotStart(str(error)) from error
    try:
        app = create_app(client, models, settings, instruments)
    except ValueError as error:
        raise CannotStart(f"--model {','.join(names)}: {error}") from error
    http = build_http_server(app, config.log.access_log)
    children = chain([first_child], start_children(first_child.command))

    # What is here now stays for good. And a step of many streams makes some thousand objects which it soon lets go of:
    # collecting among them, as by default once in seven hundred, would only ever find them in use.
    gc.collect()
    gc.freeze()
    gc.set_threshold(YOUNG_OBJECTS)

    async def run() -> int:
        supervisor = Supervisor(children, configure, client, RestartPolicy())
        return await Lifetime(http, supervisor, client, config.http.drain_seconds, started_at).run(listener)

    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        return runner.run(run())


def _served_model(source: ModelSource) -> ServedModel:
    path = Path(source.path)
    try:
        return load_served_model(source.name, path, Tokenizer.load(path))
    except (OSError, ValueError) as error:
        raise CannotStart(f"--model {source.name}={source.path}: {error}") from error
