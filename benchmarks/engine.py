"""The engine alone, without HTTP: seconds per thousand generated tokens, as JSON.

Of the processor, of the wall clock, and of the engine's steps outside the model's forward.

python -m benchmarks.engine [CHECKPOINT] [--concurrency 32] [--temperature 0]

Uses only what every version of the engine has, so that `benchmarks.against` can run it in an older tree.
"""

import argparse
import json
import time
from pathlib import Path

from server.engine.config import EngineConfig
from server.engine.core import EngineCore
from server.engine.load import load_engine
from server.engine.params import SamplingParams
from server.engine.types import SequenceRequest

PROMPT_TOKENS, OUTPUT_TOKENS = 48, 128


def decode(core: EngineCore, first_id: int, concurrency: int, temperature: float) -> tuple[int, float]:
    """Decode requests that all arrive at once; how many tokens they got, and seconds outside forward."""
    for id_ in range(first_id, first_id + concurrency):
        prompt = tuple((id_ * 7 + place * (id_ % 5 + 1)) % 60 + 1 for place in range(PROMPT_TOKENS))
        params = SamplingParams(OUTPUT_TOKENS, temperature=temperature, ignore_eos=True, seed=id_)
        core.add(SequenceRequest(id_, prompt, params, f"no sharing {id_}"))
    num_tokens, outside = 0, 0.0
    while core.has_work():
        step = core.step()
        num_tokens += sum(len(output.tokens) for output in step.outputs)
        outside += step.stats.duration_seconds - step.stats.forward_seconds
    return num_tokens, outside


def main() -> None:
    """Warm up with a batch, measure the others together."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("checkpoint", nargs="?", type=Path, default=Path("checkpoints/shakespeare-gqa"))
    parser.add_argument("--concurrency", type=int, default=32)
    parser.add_argument("--temperature", type=float, default=0.0)
    parser.add_argument("--batches", type=int, default=3)
    arguments = parser.parse_args()
    concurrency, temperature = arguments.concurrency, arguments.temperature
    core = load_engine(arguments.checkpoint, EngineConfig())
    decode(core, 0, concurrency, temperature)
    wall, cpu = time.perf_counter(), time.process_time()
    batches = [decode(core, batch * concurrency, concurrency, temperature) for batch in range(1, arguments.batches + 1)]
    seconds = {
        "cpu": time.process_time() - cpu,
        "wall": time.perf_counter() - wall,
        "outside forward": sum(outside for _, outside in batches),
    }
    thousands = sum(num_tokens for num_tokens, _ in batches) / 1000
    print(json.dumps({kind: value / thousands for kind, value in seconds.items()}))


if __name__ == "__main__":
    main()
