"""What speculation does to throughput: the same requests with it on and off in turn, in one process, pair by pair.

python -m benchmarks.speculation [--method auto] [--concurrency 32] [--pairs 7]
"""

import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import count, islice
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
    rounds: int = 1
    """Requests one after another in each of the places that `concurrency` counts. With one, those with right drafts
    end early, and leave the others in smaller and smaller steps."""
    pairs: int = 7
    engine: EngineConfig = field(default_factory=EngineConfig)
    validation_fraction: float = 0.1
    """The share of the plays that the target's training held out: prompts are from there."""


@dataclass(frozen=True)
class Measured:
    """One batch of requests, decoded together."""

    tokens_per_second: float
    tokens_per_cpu_second: float
    """Of processor time: what a machine shared with other work blurs less."""
    tokens_per_target_step: float
    texts: dict[int, list[int]]
    """What each prompt, counted from 0, was answered: speculation must not change it."""


def measure(core: EngineCore, requests: Sequence[SequenceRequest], concurrency: int) -> Measured:
    """Decode the requests, so many at a time."""
    num_turns = 0
    texts: dict[int, list[int]] = {place: [] for place in range(len(requests))}
    places = {request.id: place for place, request in enumerate(requests)}
    started, cpu_started = time.perf_counter(), time.process_time()
    waiting = iter(requests)
    for request in islice(waiting, concurrency):
        core.add(request)
    while core.has_work():
        for output in core.step().outputs:
            if output.finish_reason is not None and (following := next(waiting, None)) is not None:
                core.add(following)
            texts[places[output.id]] += output.tokens
            num_turns += bool(output.tokens) if output.num_drafted else len(output.tokens)
    seconds, cpu_seconds = time.perf_counter() - started, time.process_time() - cpu_started
    num_tokens = sum(map(len, texts.values()))
    return Measured(num_tokens / seconds, num_tokens / cpu_seconds, num_tokens / num_turns, texts)


def prompts(options: Options) -> list[tuple[int, ...]]:
    """Pieces of held-out text, a different one for each request of a batch."""
    tokenizer = Tokenizer.load(options.target)
    held_out = split_documents(read_documents(None), options.validation_fraction).validation
    tokens = tokenizer.encode("".join(document.text for document in held_out))
    num_requests = options.concurrency * options.rounds
    stride = len(tokens) // num_requests
    return [tuple(tokens[i * stride : i * stride + options.prompt_length]) for i in range(num_requests)]


def main(argv: Sequence[str]) -> None:
    """Print every pair, then the median ratio."""
    options = tyro.cli(Options, args=argv)
    core = load_engine(options.target, options.engine, options.draft)
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
    ratios, cpu_ratios, differing = [], [], 0
    for pair in range(-1, options.pairs):
        order = (on, off) if pair % 2 else (off, on)
        measured = {one: measure(core, batch(one, pair + 1), options.concurrency) for one in order}
        if pair < 0:
            continue  # warm-up
        ratios.append(measured[on].tokens_per_second / measured[off].tokens_per_second)
        cpu_ratios.append(measured[on].tokens_per_cpu_second / measured[off].tokens_per_cpu_second)
        differing += measured[on].texts != measured[off].texts
        print(
            f"pair {pair}: {options.method} {measured[on].tokens_per_second:.0f} tokens/s "
            f"({measured[on].tokens_per_target_step:.2f} a target step), off {measured[off].tokens_per_second:.0f}, "
            f"ratio {ratios[-1]:.3f}, of processor time {cpu_ratios[-1]:.3f}",
            flush=True,
        )
    print(
        f"median ratio at concurrency {options.concurrency}: {median(ratios):.3f}, of processor time "
        f"{median(cpu_ratios):.3f}; pairs whose texts differ: {differing}"
    )


if __name__ == "__main__":
    main(sys.argv[1:])
