"""Proof at start-up that this machine's kernels keep the exactness contract for this model, or a loud fallback."""

import logging
from collections.abc import Iterator

import torch
import torch.nn.functional as F
from torch import Tensor

from model.gpt import GPT
from model.kernels import Product, fixed_height
from model.paged import BLOCK_SIZE, Span
from server.engine.runner import Runner

logger = logging.getLogger(__name__)

_PROBE_TOKENS = 24
_NEIGHBOURS = (1, 2, 7, 40, 63)


class InexactBackendError(RuntimeError):
    """On this machine a row's logits depend on its neighbours, whatever shapes the products are given."""


def choose_product(model: GPT, allow_inexact: bool) -> Product:
    """The fastest product under which one sequence's logits have the same bits alone, in company and in chunks.

    Tries whole-height library products, then products of fixed height. Raises InexactBackendError when none will do,
    unless `allow_inexact`.
    """
    candidates: tuple[tuple[str, Product], ...] = (
        ("natural height", F.linear),
        ("fixed height 32", fixed_height(32)),
        ("fixed height 8", fixed_height(8)),
    )
    for name, product in candidates:
        model.use_product(product)
        if is_exact(model):
            return product
        logger.warning("exactness check failed product=%r: rows depend on their neighbours", name)
    if not allow_inexact:
        raise InexactBackendError(
            "no matrix product on this machine gives a row the same bits at every batch size; "
            "set allow_inexact to serve all the same"
        )
    logger.warning("serving INEXACTLY: answers depend on batch-mates")
    model.use_product(F.linear)
    return F.linear


def is_exact(model: GPT) -> bool:
    """Whether a probe's logits are bitwise the same however it is computed."""
    whole = _whole(model)
    return all(torch.equal(whole[position], row) for position, row in _variations(model))


def _probe(model: GPT) -> list[int]:
    length = min(_PROBE_TOKENS, model.config.context_length)
    return [(7 * index + 3) % model.config.vocab_size for index in range(length)]


def _runner(model: GPT) -> tuple[Runner, list[int], list[Span]]:
    """A small runner, the probe's block table and the most neighbours it will have."""
    probe_blocks = [0, 1]
    neighbours = [Span(0, 1, [2 + index]) for index in range(max(_NEIGHBOURS))]
    return Runner(model, num_blocks=2 + len(neighbours)), probe_blocks, neighbours


def _whole(model: GPT) -> Tensor:
    probe = _probe(model)
    runner, blocks, _ = _runner(model)
    return runner.run(probe, [Span(0, len(probe), blocks)], range(len(probe)))


def _variations(model: GPT) -> Iterator[tuple[int, Tensor]]:
    """(position, logits [vocab]) of the probe computed in chunks, among growing crowds of neighbours."""
    probe = _probe(model)
    runner, blocks, neighbours = _runner(model)
    start = 0
    lengths = [BLOCK_SIZE + 1, *[1] * len(probe)]
    for count, length in zip((*_NEIGHBOURS, 0), lengths, strict=False):
        end = min(start + length, len(probe))
        if start == end:
            return
        crowd = neighbours[:count]
        tokens = [*[5 % model.config.vocab_size] * count, *probe[start:end]]
        rows = runner.run(tokens, [*crowd, Span(start, end - start, blocks)], range(count, count + end - start))
        for offset in range(end - start):
            yield start + offset, rows[offset]
        start = end
