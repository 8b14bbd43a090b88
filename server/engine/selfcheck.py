"""Proof at start-up that this machine's kernels keep the exactness contract for this model, or a loud fallback."""

import logging
from collections.abc import Callable, Iterator
from itertools import repeat

import torch
import torch.nn.functional as F
from torch import Tensor

from model.config import ModelConfig
from model.gpt import GPT
from model.kernels import Product, fixed_height
from model.paged import BLOCK_SIZE, Span
from server.engine.runner import Runner
from server.engine.sequence import blocks_for
from server.engine.torch_runner import TorchRunner

logger = logging.getLogger(__name__)

_PROBE_TOKENS = 136  # keys in three splits
# How the probe is cut: (tokens of the chunk, sequences that share its step); what is left goes one by one, alone.
_CHUNKS = ((17, 1), (1, 2), (1, 7), (100, 40), (1, 63))
# A model's runner with a cache of so many blocks, on so many threads.
NewRunner = Callable[[int, int], Runner]
_MOST_NEIGHBOURS = max(neighbours for _, neighbours in _CHUNKS)


class InexactBackendError(RuntimeError):
    """On this machine a row's logits depend on its neighbours, whatever shapes the products are given."""


def make_exact(model: GPT, max_rows: int, allow_inexact: bool) -> Product:
    """Give the model kernels under which a sequence's logits have the same bits alone, in company and in chunks.

    Activations are exact by construction. Of products, the fastest that passes the check is taken and returned, tried
    in this order: library products of natural height, then of fixed height. Raises InexactBackendError when none will
    do, unless `allow_inexact`. `max_rows` is the most tokens a step will have.
    """
    candidates: tuple[tuple[str, Product], ...] = (
        ("natural height", F.linear),
        ("fixed height 32", fixed_height(32)),
        ("fixed height 8", fixed_height(8)),
    )
    model.use_exact_activations()
    for name, product in candidates:
        model.use_product(product)
        if is_exact(by_torch(model), max_rows, torch.get_num_threads()):
            return product
        logger.warning("exactness check failed product=%r: rows depend on their neighbours", name)
    if not allow_inexact:
        raise InexactBackendError(
            "no matrix product on this machine gives a row the same bits at every batch size and thread count; "
            "set allow_inexact to serve all the same"
        )
    logger.warning("serving INEXACTLY: answers depend on batch-mates")
    model.use_product(F.linear)
    return F.linear


def is_exact(new_runner: NewRunner, max_rows: int, num_threads: int) -> bool:
    """Whether a probe's logits are bitwise the same in one piece on one thread as in chunks, in company, on all."""
    whole = _whole(new_runner)
    return all(torch.equal(whole[position], row) for position, row in _variations(new_runner, max_rows, num_threads))


def by_torch(model: GPT) -> NewRunner:
    """Runners of the torch back end, whose threads are the whole process's."""

    def new_runner(num_blocks: int, num_threads: int) -> Runner:
        torch.set_num_threads(num_threads)
        return TorchRunner(model, num_blocks)

    return new_runner


def _probe(config: ModelConfig) -> list[int]:
    length = min(_PROBE_TOKENS, config.context_length)
    return [(7 * index + 3) % config.vocab_size for index in range(length)]


def _whole(new_runner: NewRunner) -> Tensor:
    """Logits [probe, vocab] of the probe alone, in one chunk."""
    runner = new_runner(blocks_for(_PROBE_TOKENS), 1)
    probe = _probe(runner.config)
    return runner.run(probe, [Span(0, len(probe), range(blocks_for(len(probe))))], range(len(probe))).logits


def _variations(new_runner: NewRunner, max_rows: int, num_threads: int) -> Iterator[tuple[int, Tensor]]:
    """(position, logits [vocab]) of the probe computed in a full step, and in chunks among neighbours."""
    # Neighbours of one block each: one token in most steps, whole blocks where the step is to be full.
    full = max(0, max_rows - _PROBE_TOKENS) // BLOCK_SIZE
    runner = new_runner(blocks_for(_PROBE_TOKENS) + max(_MOST_NEIGHBOURS, full), num_threads)
    probe = _probe(runner.config)
    blocks = range(blocks_for(len(probe)))
    yield from _full_step(runner, probe, full)
    neighbours = [Span(0, 1, [len(blocks) + index]) for index in range(_MOST_NEIGHBOURS)]
    chunks = iter((*_CHUNKS, *repeat((1, 0), len(probe))))
    start = 0
    while start < len(probe):
        length, count = next(chunks)
        end = min(start + length, len(probe))
        tokens = [*[5 % runner.config.vocab_size] * count, *probe[start:end]]
        spans = [*neighbours[:count], Span(start, end - start, blocks)]
        logits = runner.run(tokens, spans, range(count, count + end - start)).logits
        yield from zip(range(start, end), logits, strict=True)
        start = end


def _full_step(runner: Runner, probe: list[int], num_neighbours: int) -> Iterator[tuple[int, Tensor]]:
    """The probe in one chunk behind `num_neighbours` chunks of a whole block."""
    blocks = range(blocks_for(len(probe)))
    length = min(BLOCK_SIZE, runner.config.context_length)
    spans = [Span(0, length, [len(blocks) + index]) for index in range(num_neighbours)]
    first = length * num_neighbours
    tokens = [*[5 % runner.config.vocab_size] * first, *probe]
    logits = runner.run(tokens, [*spans, Span(0, len(probe), blocks)], range(first, first + len(probe))).logits
    yield from zip(range(len(probe)), logits, strict=True)
