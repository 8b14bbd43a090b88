"""What the engine itself costs beside the model: seconds per thousand generated tokens, as JSON.

A stub that returns the same logits at once takes the model's place, so that what is left can be told to a fraction of a
microsecond; the model is timed as well, to say what share of a token that is. Least processor time of several batches.

python -m benchmarks.overhead [CHECKPOINT] [--concurrency 32] [--temperature 0]

Uses only what every version of the engine has, so that `benchmarks.against` can run it in an older tree.
"""

import argparse
import json
import time
from collections.abc import Sequence
from dataclasses import fields
from pathlib import Path

import torch

from benchmarks.engine import decode
from server.engine.config import EngineConfig
from server.engine.core import EngineCore
from server.engine.load import load_engine
from server.engine.runner import StepResult

# Rows of the stub's logits: as many as any step may want.
_MAX_ROWS = 4_096
# What a StepResult tells of finite numbers: of tokens, and since the native head looks, of logits.
_NUM_TOLD = len(fields(StepResult)) - 2


class StubRunner:
    """Takes the place of a model with its cache, and computes nothing."""

    def __init__(self, vocab_size: int) -> None:
        self._logits = torch.randn(_MAX_ROWS, vocab_size, generator=torch.Generator().manual_seed(0))

    def run(self, tokens: Sequence[int], spans: Sequence[object], wanted: Sequence[int]) -> StepResult:
        """As `Runner.run`. Logits are a copy, as the sampler may write to them."""
        logits = self._logits[: len(wanted)].clone()
        told = (b"\1" * len(tokens), b"\1" * len(wanted))[:_NUM_TOLD]
        return StepResult(logits, 0.0, *told)


def least_seconds(core: EngineCore, first_id: int, batches: int, concurrency: int, temperature: float) -> float:
    """Processor time per thousand tokens of the quickest of several batches."""
    seconds = []
    for batch in range(batches):
        started = time.process_time()
        num_tokens, _ = decode(core, first_id + batch * concurrency, concurrency, temperature)
        seconds.append((time.process_time() - started) / num_tokens * 1000)
    return min(seconds)


def main() -> None:
    """Time the model, then the engine without it."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("checkpoint", nargs="?", type=Path, default=Path("checkpoints/shakespeare-gqa"))
    parser.add_argument("--concurrency", type=int, default=32)
    parser.add_argument("--temperature", type=float, default=0.0)
    parser.add_argument("--batches", type=int, default=10)
    arguments = parser.parse_args()
    concurrency, temperature = arguments.concurrency, arguments.temperature
    core = load_engine(arguments.checkpoint, EngineConfig(threads=1))
    whole = least_seconds(core, 0, 3, concurrency, temperature)
    core._runner = StubRunner(core.info.vocab_size)  # type: ignore[assignment]
    stubbed = least_seconds(core, 3 * concurrency, arguments.batches, concurrency, temperature)
    print(json.dumps({"whole": whole, "beside the model": stubbed}))


if __name__ == "__main__":
    main()
