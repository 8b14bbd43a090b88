"""The engine process: owns the device, loads every model, and runs them in the loop. Started by the supervisor only.

It brings in torch, so the HTTP process never imports it. It takes the number of an inherited socket as its argument and
everything else as the first message on it.
"""

import sys
from collections.abc import Sequence
from pathlib import Path

from server.engine.backend import Backends
from server.engine.core import EngineCore
from server.engine.load import load_engine
from server.engine.selfcheck import InexactBackendError
from server.engine_loop import ignore_signals, inherited_socket, run
from server.errors import CannotStart
from server.logs import configure_logging
from server.protocol import Configure


def main(argv: Sequence[str]) -> int:
    """Returns the exit code: 0 when the HTTP process went away, 1 after a crash, 2 for what cannot be loaded."""
    ignore_signals()
    return run(inherited_socket(int(argv[0])), load_cores)


def load_cores(configure: Configure) -> list[EngineCore]:
    """One core per model, in order. Raises CannotStart for a folder or a setting that cannot be served."""
    configure_logging(configure.log_level, configure.log_format)
    cores = []
    backends = Backends(configure.engine)
    for model in configure.models:
        try:
            draft = None if model.draft is None else Path(model.draft)
            cores.append(load_engine(Path(model.path), configure.engine, draft, backends))
        except (OSError, ValueError, InexactBackendError) as error:
            raise CannotStart(f"--model {model.name}={model.path}: {error}") from error
    return cores


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
