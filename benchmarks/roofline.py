"""How near the native back end's steps come to what the machine can do at most: see `benchmarks.machine`.

    python -m benchmarks.roofline CHECKPOINT [--threads N] [--quantize int8]

Decode steps at batch 1, 8, 32 and 64 and a prompt of 512 tokens, without scheduler, sampler or HTTP. A step has at
least to read its weights (of a mixture only those of experts that some row chose) and its sequences' keys and values
once, and to compute its products and attention, in the last layer only those of the rows that are wanted and the keys
and values of the others; its share is the least time that can take over the median measured. Small models lie in the
processor's caches, which are faster than memory: they may pass 100 %.
"""

import argparse
import os
import statistics
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import get_args

import numpy as np
import torch

from benchmarks.machine import clock_for, measure_machine
from model.checkpoint import load_checkpoint
from model.config import ModelConfig
from model.gpt import GPT
from model.native.abi import open_library
from model.native.lowering import Lowering, Quantize
from model.native.native_model import NativeModel
from model.native.observed import Observed
from model.paged import BLOCK_SIZE, Span

_BATCHES = (1, 8, 32, 64)
# Keys of a sequence that is half way through an answer of 128 tokens to a prompt of 48.
_CONTEXT = 112
_PROMPT = 512
_LEAST_REPEATS = 5


@dataclass(frozen=True)
class Step:
    """What a step is given: its tokens, spans and the rows to unembed."""

    name: str
    tokens: list[int]
    spans: list[Span]
    wanted: list[int]


@dataclass(frozen=True)
class Work:
    """What a step has at least to read and to compute."""

    num_bytes: int
    operations: int


@dataclass(frozen=True)
class Weights:
    """Numbers in a model's products: those every row meets, those of one expert in one layer, those of unembedding."""

    shared: int
    expert: int
    unembedding: int

    @classmethod
    def of(cls, model: GPT) -> "Weights":
        """Of a loaded model, by the names of its parameters. Biases and norms are too few to count."""
        config = model.config
        unembedding = model.unembedding.weight.numel()
        matrices = {name: p.numel() for name, p in model.layers.named_parameters() if p.dim() > 1}
        experts = sum(
            size for name, size in matrices.items() if name.endswith(("feed_forward.up", "feed_forward.down"))
        )
        per_expert = experts // (config.num_layers * config.num_experts) if config.num_experts else 0
        return cls(sum(matrices.values()) - experts, per_expert, unembedding)


def decode_step(config: ModelConfig, batch: int) -> Step:
    """One token for each of `batch` sequences of _CONTEXT - 1 tokens."""
    blocks = -(-_CONTEXT // BLOCK_SIZE)
    tables = [list(range(n * blocks, (n + 1) * blocks)) for n in range(batch)]
    spans = [Span(_CONTEXT - 1, 1, table) for table in tables]
    return Step(f"batch {batch}", _tokens(config, batch), spans, list(range(batch)))


def prompt_step(config: ModelConfig) -> Step:
    """A whole prompt, of which the last row is unembedded."""
    length = min(_PROMPT, config.context_length)
    table = list(range(-(-length // BLOCK_SIZE)))
    return Step(f"prompt {length}", _tokens(config, length), [Span(0, length, table)], [length - 1])


def least_work(weights: Weights, config: ModelConfig, step: Step, experts_used: int, weight_bytes: int) -> Work:
    """`experts_used` counts, over all layers, the experts that some row chose."""
    layers, wanted = config.num_layers, set(step.wanted)
    chosen = config.num_experts_per_token if config.num_experts else 0
    layer = weights.shared // layers + weights.expert * chosen
    keys_and_values = 2 * config.num_kv_heads * config.head_dim
    rows, unwanted = len(step.tokens), len(step.tokens) - len(wanted)
    products = layer * (layers * rows - unwanted) + config.hidden_size * keys_and_values * unwanted
    products += weights.unembedding * len(step.wanted)
    keys_met = [span.start + place + 1 for span in step.spans for place in range(span.length)]  # by each row
    pairs = layers * sum(keys_met) - sum(met for row, met in enumerate(keys_met) if row not in wanted)
    attention = 2 * 2 * config.num_heads * config.head_dim  # operations for each of them
    numbers = weights.shared + weights.expert * experts_used + weights.unembedding
    keys_read = sum(span.start + span.length for span in step.spans)
    cached = layers * keys_and_values * 2  # bytes per token, bfloat16
    return Work(numbers * weight_bytes + keys_read * cached, 2 * products + attention * pairs)


def experts_used(native: NativeModel, step: Step) -> int:
    """Over all layers, as the step itself reports; 0 for a model without experts."""
    config = native.lowering.config
    if not config.num_experts:
        return 0
    observed = Observed(config, len(step.tokens), True, {})
    native.run(step.tokens, step.spans, step.wanted, observed)
    return sum(len(np.unique(layer)) for layer in observed.chosen)


def step_seconds(native: NativeModel, step: Step, budget: float, clock: Callable[[], float]) -> list[float]:
    """Of each repetition, after a first that is not counted, for about `budget` seconds."""
    native.run(step.tokens, step.spans, step.wanted)
    seconds: list[float] = []
    while sum(seconds) < budget or len(seconds) < _LEAST_REPEATS:
        started = clock()
        native.run(step.tokens, step.spans, step.wanted)
        seconds.append(clock() - started)
    return seconds


def _tokens(config: ModelConfig, count: int) -> list[int]:
    # Varied, so that the experts of a mixture are, too.
    return [(7_919 * n + 3) % config.vocab_size for n in range(count)]


def _arguments(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("checkpoint", type=Path)
    parser.add_argument("--threads", type=int, default=os.cpu_count() or 1)
    parser.add_argument("--quantize", choices=get_args(Quantize), default="none")
    parser.add_argument("--seconds", type=float, default=3.0, help="for each kind of step")
    return parser.parse_args(argv)


def main(argv: Sequence[str] | None = None) -> None:
    """Measure the machine, then each kind of step, and print a table."""
    arguments = _arguments(argv)
    model = load_checkpoint(arguments.checkpoint, torch.bfloat16, torch.device("cpu"))
    config, library = model.config, open_library()
    steps = [*(decode_step(config, batch) for batch in _BATCHES), prompt_step(config)]
    num_blocks = 1 + max(max(span.blocks) for step in steps for span in step.spans)
    native = NativeModel(Lowering(model, library, arguments.quantize), num_blocks, arguments.threads)
    weight_bytes = 1 if arguments.quantize == "int8" else 2
    machine = measure_machine(library, native.instruction_set, weight_bytes, arguments.threads)
    weights = Weights.of(model)
    kind = "int8" if arguments.quantize == "int8" else "bfloat16"
    print(
        f"{arguments.checkpoint.name}, {kind} weights, {native.instruction_set}, "
        f"{arguments.threads} threads: memory {machine.bandwidth / 1e9:.1f} GB/s, peak {machine.peak / 1e9:.0f} GOP/s"
    )
    print(f"{'step':12}{'tokens/s':>10}{'(best)':>10}{'ms':>9}{'MB':>9}{'GOP':>9}  bound by   share of the roofline")
    for step in steps:
        work = least_work(weights, config, step, experts_used(native, step), weight_bytes)
        seconds = step_seconds(native, step, arguments.seconds, clock_for(arguments.threads))
        median, least = statistics.median(seconds), machine.least_seconds(work.num_bytes, work.operations)
        bound = "memory" if work.num_bytes / machine.bandwidth >= work.operations / machine.peak else "dots"
        rate, best = len(step.tokens) / median, len(step.tokens) / min(seconds)
        print(
            f"{step.name:12}{rate:10.0f}{best:10.0f}{median * 1e3:9.2f}{work.num_bytes / 1e6:9.1f}"
            f"{work.operations / 1e9:9.2f}  {bound:8} {100 * least / median:6.0f} %",
            flush=True,
        )


if __name__ == "__main__":
    main()
