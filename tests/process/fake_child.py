"""Run as a script: the real engine process with fake cores. `fake_child.py BEHAVIOUR FD`, BEHAVIOUR a JSON object."""

import json
import os
import signal
import sys
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from fake_core import FakeCore

from server.engine.types import StepOutput
from server.engine_loop import Core, ignore_signals, inherited_socket, run
from server.errors import CannotStart
from server.logs import configure_logging
from server.protocol import Configure


class HangingCore(FakeCore):
    """Its first step makes a file and never ends."""

    def __init__(self, file: Path) -> None:
        super().__init__()
        self._file = file

    def step(self) -> StepOutput:
        self._file.touch()
        while True:
            signal.pause()


def main() -> int:
    behaviour = json.loads(sys.argv[1])

    def load(configure: Configure) -> list[Core]:
        configure_logging(configure.log_level, configure.log_format)
        match behaviour.get("load"):
            case "fatal":
                raise CannotStart("--model a=/nowhere: has no weights")
            case "crash":
                raise RuntimeError("crashed while loading")
            case "garbage":
                os.write(int(sys.argv[2]), b"\x00\x00\x00\x04\xff\xff\xff\xff")
        if "loading_file" in behaviour:
            Path(behaviour["loading_file"]).touch()
        time.sleep(behaviour.get("load_seconds", 0))
        if "hang_file" in behaviour:
            return [HangingCore(Path(behaviour["hang_file"])) for _ in configure.models]
        return [FakeCore(behaviour.get("step_seconds", 0.0)) for _ in configure.models]

    ignore_signals()
    return run(inherited_socket(int(sys.argv[2])), load)


if __name__ == "__main__":
    sys.exit(main())
