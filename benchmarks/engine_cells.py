"""This engine over a plan of batches, without HTTP; prints the rates as JSON. For `benchmarks.versus_openvino`."""

import json
import sys
from collections.abc import Sequence
from itertools import count
from pathlib import Path

from benchmarks.cells import Plan, Prompt, rates
from benchmarks.quiet import QUIET_SHARE, await_quiet
from server.engine.config import EngineConfig
from server.engine.core import EngineCore
from server.engine.load import load_engine
from server.engine.params import SamplingParams
from server.engine.types import SequenceRequest


class Engine:
    """Decodes batches, greedily."""

    def __init__(self, core: EngineCore) -> None:
        self._core = core
        self._ids = count()

    def decode(self, prompts: Sequence[Prompt], num_tokens: int) -> int:
        """See `benchmarks.cells.Decode`."""
        params = SamplingParams(num_tokens, temperature=0.0, ignore_eos=True)
        for id_, prompt in zip(self._ids, prompts, strict=False):
            self._core.add(SequenceRequest(id_, tuple(prompt), params))
        num_decoded = 0
        while self._core.has_work():
            num_decoded += sum(len(output.tokens) for output in self._core.step().outputs)
        return num_decoded


def main() -> None:
    """Arguments: a checkpoint, a plan, and fields of EngineConfig, the latter two as JSON."""
    checkpoint, plan, settings = sys.argv[1:]
    core = load_engine(Path(checkpoint), EngineConfig(**json.loads(settings)))
    await_quiet(QUIET_SHARE)  # its cache still takes its memory
    print(json.dumps(rates(Plan.from_json(plan), Engine(core).decode)))


if __name__ == "__main__":
    main()
