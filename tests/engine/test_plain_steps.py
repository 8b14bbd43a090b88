"""Plain steps against the way of all others: the same outputs, numbers and blocks, whatever happens around them."""

from collections.abc import Sequence
from dataclasses import replace

import pytest
import torch
from backends import on_every_backend
from engine_driver import Run, decode, decode_arriving, engine_core
from request_mix import request_mix
from tiny_models import FAMILIES, tiny_model

from model.gpt import GPT
from server.engine import core as core_module
from server.engine.core import EngineCore
from server.engine.params import SamplingParams
from server.engine.plain_steps import run_plain
from server.engine.runner import Runner
from server.engine.types import SequenceRequest

pytestmark = on_every_backend
POISON = 96  # its embedding is not a number


@pytest.fixture(scope="module")
def model() -> GPT:
    return tiny_model(FAMILIES["gqa"])


def plain_mix(seed: int) -> list[SequenceRequest]:
    """Requests that are told nothing but their tokens, all but one."""
    mix = [
        replace(request, params=replace(request.params, logprobs=None, prompt_logprobs=None))
        for request in request_mix(14, seed)
    ]
    mix[7] = replace(mix[7], params=replace(mix[7].params, logprobs=2, min_tokens=0, max_tokens=4))
    return mix


def count_plain(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Filled with how many sequences each plain step had."""
    counts: list[int] = []

    def counted(runner: Runner, decodings: Sequence[object]) -> object:
        counts.append(len(decodings))
        return run_plain(runner, decodings)  # type: ignore[arg-type]

    monkeypatch.setattr(core_module, "run_plain", counted)
    return counts


def arriving(model: GPT, seed: int, num_blocks: int) -> tuple[Run, EngineCore]:
    """A mix that comes bit by bit, into a pool that may be too small for it."""
    core = engine_core(model, num_blocks=num_blocks, max_running=8, max_step_tokens=48)
    requests = plain_mix(seed)
    return decode_arriving(core, {3 * place: requests[place::5] for place in range(5)}), core


@pytest.mark.parametrize("num_blocks", [400, 14])
@pytest.mark.parametrize("seed", range(3))
def test_plain_steps_do_what_other_steps_do(
    model: GPT, seed: int, num_blocks: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    counts = count_plain(monkeypatch)
    plain, core = arriving(model, seed, num_blocks)
    assert max(counts) > 2
    monkeypatch.setattr(core_module, "plain_decodings", lambda chunks, decodings: None)
    other, other_core = arriving(model, seed, num_blocks)
    assert (plain.outputs, plain.stats) == (other.outputs, other.stats)
    assert core.scheduler.pool.eviction_order() == other_core.scheduler.pool.eviction_order()


def test_numbers_that_are_not_finite_end_a_plain_step_for_one(model: GPT, monkeypatch: pytest.MonkeyPatch) -> None:
    poisoned = tiny_model(FAMILIES["gqa"])
    with torch.no_grad():
        poisoned.embedding.weight[POISON] = float("nan")
    greedy = SamplingParams(max_tokens=10, temperature=0.0, ignore_eos=True, banned_tokens=(POISON,))
    taken = replace(greedy, banned_tokens=(), logit_bias=((POISON, 100.0),))
    requests = [SequenceRequest(0, (5, 6, 7), greedy), SequenceRequest(1, (8, 9), taken)]
    counts = count_plain(monkeypatch)
    plain = decode(engine_core(poisoned), requests)
    assert counts[0] == 2
    monkeypatch.setattr(core_module, "plain_decodings", lambda chunks, decodings: None)
    other = decode(engine_core(poisoned), requests)
    assert (plain.outputs, plain.stats) == (other.outputs, other.stats)
    assert (plain.results[1].tokens, plain.results[1].finish_reason) == ([POISON], "error")
    assert plain.results[0].finish_reason == "length"
