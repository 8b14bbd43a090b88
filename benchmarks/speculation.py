"""What speculation does to throughput: the same requests with it on and off in turn, in one process, pair by pair.

python -m benchmarks.speculation [--method auto] [--concurrency 32] [--pairs 7]
"""

import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import count
from pathlib import Path
from statistics import median

import tyro

from model.tokenizer import Tokenizer
from server.engine.config import EngineConfig
from server.engine.core import EngineCore
from server.engine.load import load_engine
from server.engine.params import SamplingParams
from server.engine.types import DraftMethod, SequenceRequest, Speculation
from training.corpus import read_documents, split_documents


@dataclass(frozen=True)
class Options:
    """Measure what speculation costs and gains."""

    target: Path = Path("checkpoints/shakespeare-char")
    draft: Path | None = Path("checkpoints/shakespeare-draft")
    method: DraftMethod = "auto"
    num_drafts: int = 4
    concurrency: int = 32
    temperature: float = 0.8
    prompt_length: int = 48
    num_tokens: int = 128
    pairs: int = 7


@dataclass(frozen=True)
class Measured:
    """One batch of requests, decoded together."""

    tokens_per_second: float
    tokens_per_target_step: float


def measure(core: EngineCore, requests: Sequence[SequenceRequest]) -> Measured:
    """Decode the requests, all there from the beginning."""
    num_tokens = num_turns = 0
    started = time.perf_counter()
    for request in requests:
        core.add(request)
    while core.has_work():
        for output in core.step().outputs:
            num_tokens += len(output.tokens)
            num_turns += bool(output.tokens)
    return Measured(num_tokens / (time.perf_counter() - started), num_tokens / num_turns)


def prompts(options: Options) -> list[tuple[int, ...]]:
    """Pieces of held-out text, a different one for each request of a batch."""
    tokenizer = Tokenizer.load(options.target)
    held_out = split_documents(read_documents(None), 0.1).validation
    tokens = tokenizer.encode("".join(document.text for document in held_out))
    stride = len(tokens) // options.concurrency
    return [tuple(tokens[i * stride : i * stride + options.prompt_length]) for i in range(options.concurrency)]


def main(argv: Sequence[str]) -> None:
    """Print every pair, then the median ratio."""
    options = tyro.cli(Options, args=argv)
    core = load_engine(options.target, EngineConfig(), options.draft)
    texts = prompts(options)
    ids = count()

    def batch(speculation: Speculation, seed: int) -> list[SequenceRequest]:
        params = SamplingParams(options.num_tokens, temperature=options.temperature, ignore_eos=True, seed=seed)
        # A salt of its own each time: a pair must not find its prompts in the cache.
        return [
            SequenceRequest(id_, text, params, f"{seed}{speculation}", speculation)
            for id_, text in zip(ids, texts, strict=False)
        ]

    on, off = Speculation(options.method, options.num_drafts), Speculation("off")
    ratios = []
    for pair in range(-1, options.pairs):
        order = (on, off) if pair % 2 else (off, on)
        measured = {one: measure(core, batch(one, pair + 1)) for one in order}
        if pair < 0:
            continue  # warm-up
        ratios.append(measured[on].tokens_per_second / measured[off].tokens_per_second)
        print(
            f"pair {pair}: {options.method} {measured[on].tokens_per_second:.0f} tokens/s "
            f"({measured[on].tokens_per_target_step:.2f} a target step), off {measured[off].tokens_per_second:.0f}, "
            f"ratio {ratios[-1]:.3f}",
            flush=True,
        )
    print(f"median ratio at concurrency {options.concurrency}: {median(ratios):.3f}")


if __name__ == "__main__":
    main(sys.argv[1:])
