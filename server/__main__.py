"""The composition root of the server: reads the command line and the environment, and starts both processes."""

import errno
import logging
import os
import socket
import sys
import time
from collections.abc import Sequence
from pathlib import Path

from server.command_line import PROGRAM, parse_arguments
from server.config import ServerConfig, refuse
from server.draft_sources import assign_drafts, check_default
from server.errors import CannotStart, EngineGivenUp
from server.logs import Event, configure_logging
from server.model_sources import resolve_models
from server.protocol import Configure
from server.supervisor import EngineChild

API_KEY_VARIABLE = "MINIGPT_API_KEY"
ENGINE_COMMAND = (sys.executable, "-m", "server.engine_process")
DEFAULT_CHECKPOINTS = Path(__file__).resolve().parents[1] / "checkpoints"
EXIT_GIVEN_UP = 1
EXIT_CANNOT_START = 2
EXIT_INTERRUPTED = 130
BACKLOG = 2048

logger = logging.getLogger("server")


def main(argv: Sequence[str] | None = None) -> int:
    """Serve until told to stop; returns the exit code."""
    started_at = time.monotonic()
    try:
        config = parse_arguments(sys.argv[1:] if argv is None else argv)
        return _serve(config, os.environ.get(API_KEY_VARIABLE), started_at)
    except CannotStart as error:
        print(f"{PROGRAM}: {error}", file=sys.stderr)
        return EXIT_CANNOT_START
    except EngineGivenUp as error:
        logger.critical(Event("engine_given_up", reason=error))
        return EXIT_GIVEN_UP
    except KeyboardInterrupt:  # before there was anything to drain
        return EXIT_INTERRUPTED


def _serve(config: ServerConfig, environment_key: str | None, started_at: float) -> int:
    sources = assign_drafts(resolve_models(config.models.model, DEFAULT_CHECKPOINTS), config.speculation.draft)
    check_default(config.speculation.speculative, sources)
    api_keys = config.http.api_key or ((environment_key,) if environment_key else ())
    configure_logging(config.log.log_level, config.log.log_format)
    listener = _listen(config.http.host, config.http.port)
    if not config.http.is_loopback and not api_keys:
        logger.warning(Event("open_to_everyone", host=config.http.host, hint="set --api-key"))
    first_child = EngineChild.start(ENGINE_COMMAND)
    # Only now: importing the HTTP stack takes a second, which the engine process uses to bring in torch.
    from server.composition import serve

    configure = Configure(sources, config.engine, config.log.log_level, config.log.log_format)
    return serve(config, configure, api_keys, listener, first_child, started_at)


def _listen(host: str, port: int) -> socket.socket:
    """A listening socket, so that /health/live answers while the models load."""
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(
            host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )[0]
    except OSError as error:
        refuse("host", host, f"is not an address to listen on: {error.strerror}")
    listener = socket.socket(family, kind, protocol)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listener.bind(address)
        listener.listen(BACKLOG)
    except OSError as error:
        listener.close()
        if error.errno == errno.EADDRNOTAVAIL:
            refuse("host", host, "is not an address of this machine")
        refuse("port", port, f"cannot be listened on at {host}: {error.strerror}")
    return listener


if __name__ == "__main__":
    sys.exit(main())
