"""Each thing that keeps answers exact, broken on purpose: the comparison must then find a difference."""

import itertools
from collections.abc import Callable, Sequence
from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from engine_driver import Result, decode, engine_core, preempt
from request_mix import request_mix
from tiny_models import FAMILIES, VOCAB_SIZE, tiny_model
from torch import Tensor

import model.moe
import model.paged
import model.paged_attention
import server.engine.sequence
import server.engine.torch_runner
import server.engine.verify
from model.attention import visible_keys
from model.gpt import GPT
from model.moe import MixtureOfExperts
from server.engine.block_pool import BLOCK_SIZE, block_hash, salted_root
from server.engine.core import EngineCore
from server.engine.params import SamplingParams
from server.engine.sampler import DecodingState, Observe, Row, choose
from server.engine.scheduler import Chunk, Scheduler
from server.engine.sequence import Sequence as EngineSequence
from server.engine.sequence import blocks_for
from server.engine.types import SequenceRequest

REQUESTS = tuple(request_mix(7, seed=5, max_prompt=120, max_tokens=12))


@pytest.fixture(scope="module")
def gqa() -> GPT:
    return tiny_model(FAMILIES["gqa"])


@pytest.fixture(scope="module")
def moe() -> GPT:
    return tiny_model(FAMILIES["moe"])


GREEDY = SamplingParams(max_tokens=6, temperature=0.0, logprobs=0, ignore_eos=True)


def request(id_: int, prompt: Sequence[int], salt: str = "", params: SamplingParams = GREEDY) -> SequenceRequest:
    return SequenceRequest(id_, tuple(prompt), params, salt)


def prompt_of(length: int, seed: int) -> list[int]:
    return torch.randint(VOCAB_SIZE, (length,), generator=torch.Generator().manual_seed(seed)).tolist()


def alone(model: GPT, request: SequenceRequest) -> Result:
    return decode(engine_core(model), [request]).results[request.id]


def company_matters(model: GPT, mates: Sequence[SequenceRequest] = REQUESTS) -> bool:
    """Whether any request's result changes with its batch-mates."""
    return decode(engine_core(model), mates).results != {mate.id: alone(model, mate) for mate in mates}


def chunks_matter(model: GPT) -> bool:
    """Whether a result changes with the cut of the prompt."""
    longest = max(REQUESTS, key=lambda mate: len(mate.prompt))
    return decode(engine_core(model, max_step_tokens=5), [longest]).results[longest.id] != alone(model, longest)


def cache_matters(model: GPT, before: SequenceRequest | list[SequenceRequest], later: SequenceRequest) -> bool:
    """Whether the result of `later` changes with what was decoded before it."""
    core = engine_core(model)
    decode(core, before if isinstance(before, list) else [before])
    return decode(core, [later]).results[later.id] != alone(model, later)


def test_nothing_matters_while_nothing_is_broken(gqa: GPT, moe: GPT) -> None:
    for tiny in (gqa, moe):
        assert not company_matters(tiny)
        assert not chunks_matter(tiny)


def test_control_row_padding(gqa: GPT, monkeypatch: pytest.MonkeyPatch) -> None:
    """Natural heights of one to three rows take other code paths in the library."""
    monkeypatch.setattr(server.engine.torch_runner, "padding", lambda rows: 0)
    assert company_matters(gqa)


def test_control_expert_row_padding(moe: GPT, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(model.moe, "padding", lambda rows: 0)
    assert company_matters(moe)


def test_control_product_of_any_height(monkeypatch: pytest.MonkeyPatch) -> None:
    broken = tiny_model(FAMILIES["gqa"])
    broken.use_product(lambda rows, weight, bias: F.linear(rows, weight, bias) * (1 + 1e-6 * rows.shape[0]))
    assert company_matters(broken)
    assert chunks_matter(broken)


def test_control_splits_combined_by_their_number(gqa: GPT, monkeypatch: pytest.MonkeyPatch) -> None:
    """Halves of however many splits the longest batch-mate has, instead of one split after the other."""

    def sum_in_halves(parts: Tensor) -> Tensor:
        half = parts.shape[2] // 2
        return parts[:, :, :half].sum(2) + parts[:, :, half:].sum(2)

    of_three_splits, of_four_splits = request(1, prompt_of(150, 1)), request(2, prompt_of(220, 2))
    assert not company_matters(gqa, [of_three_splits, of_four_splits])
    monkeypatch.setattr(model.paged_attention, "_sum_in_order", sum_in_halves)
    assert company_matters(gqa, [of_three_splits, of_four_splits])


def test_control_mask(gqa: GPT, monkeypatch: pytest.MonkeyPatch) -> None:
    """One key too many: the next token's, or whatever the slot held before."""

    def one_too_many(queries: Tensor, keys: Tensor, window: int | None) -> Tensor:
        return visible_keys(queries + 1, keys, window)

    monkeypatch.setattr(model.paged, "visible_keys", one_too_many)
    assert chunks_matter(gqa)


def test_control_stale_keys(gqa: GPT, monkeypatch: pytest.MonkeyPatch) -> None:
    """A mask that ends with the block instead of with the token."""

    def to_the_end_of_the_block(queries: Tensor, keys: Tensor, window: int | None) -> Tensor:
        return visible_keys(queries // BLOCK_SIZE * BLOCK_SIZE + BLOCK_SIZE - 1, keys, window)

    monkeypatch.setattr(model.paged, "visible_keys", to_the_end_of_the_block)
    small = engine_core(gqa, num_blocks=2)
    first, second = request(1, prompt_of(24, 1)), request(2, prompt_of(17, 2))
    decode(small, [first])
    assert decode(small, [second]).results[2] != alone(gqa, second)


def disturb_noise(monkeypatch: pytest.MonkeyPatch, shift: Callable[[int, int], int]) -> None:
    """Move each row's noise by shift(row of the batch, number of the call)."""
    calls = itertools.count()

    def shifted(logits: Tensor, rows: Sequence[Row], observe: Observe) -> list[int]:
        call = next(calls)
        moved = [row._replace(position=row.position + shift(i, call)) for i, row in enumerate(rows)]
        return choose(logits, moved, observe)

    monkeypatch.setattr(server.engine.verify, "choose", shifted)


def test_control_noise_by_batch_row(gqa: GPT, monkeypatch: pytest.MonkeyPatch) -> None:
    disturb_noise(monkeypatch, lambda row, call: row)
    assert company_matters(gqa)


def test_control_noise_by_step(gqa: GPT, monkeypatch: pytest.MonkeyPatch) -> None:
    disturb_noise(monkeypatch, lambda row, call: call)
    assert company_matters(gqa)


def test_control_history_lost_on_preemption(gqa: GPT) -> None:
    params = replace(GREEDY, frequency_penalty=2.0, presence_penalty=2.0, max_tokens=20)
    penalised = request(1, prompt_of(20, 3), params=params)

    def preempt_once(core: EngineCore, step: int) -> None:
        if step == 10:
            preempt(core)

    def preempt_and_forget(core: EngineCore, step: int) -> None:
        preempt_once(core, step)
        if step == 10:
            core._decodings[1].state = DecodingState.of(params, penalised.prompt, VOCAB_SIZE)

    assert decode(engine_core(gqa), [penalised], preempt_once).results[1] == alone(gqa, penalised)
    assert decode(engine_core(gqa), [penalised], preempt_and_forget).results[1] != alone(gqa, penalised)


def after_an_abort_half_way(model: GPT) -> bool:
    """Whether a result changes when its prompt was computed before, up to the middle of a block."""
    core = engine_core(model, max_step_tokens=24)
    core.add(request(1, prompt_of(40, 4)))
    core.step()
    core.abort([1])
    later = request(2, prompt_of(40, 4))
    return decode(core, [later]).results[2] != alone(model, later)


def test_control_block_published_before_it_is_full(gqa: GPT, monkeypatch: pytest.MonkeyPatch) -> None:
    assert not after_an_abort_half_way(gqa)
    commit = Scheduler.commit

    def too_early(self: Scheduler, chunks: Sequence[Chunk]) -> None:
        commit(self, chunks)
        for chunk in chunks:
            sequence = chunk.sequence
            begun = min(blocks_for(chunk.end), sequence.num_tokens // BLOCK_SIZE)
            for block, content in zip(sequence.blocks, sequence.hashes(begun), strict=False):
                self.pool.publish(block, content)

    monkeypatch.setattr(Scheduler, "commit", too_early)
    assert after_an_abort_half_way(gqa)


def test_control_hash_of_all_tokens(gqa: GPT, monkeypatch: pytest.MonkeyPatch) -> None:
    first, second = prompt_of(40, 5), prompt_of(40, 5)
    second[15] = (first[15] + 1) % VOCAB_SIZE
    pair = request(1, first), request(2, second)
    assert not cache_matters(gqa, *pair)
    monkeypatch.setattr(server.engine.sequence, "block_hash", lambda parent, tokens: block_hash(parent, tokens[:-1]))
    assert cache_matters(gqa, *pair)


def test_control_hash_of_the_parent(gqa: GPT, monkeypatch: pytest.MonkeyPatch) -> None:
    """The first block of one prompt and the second of another are known, but not one after the other."""
    first, second = prompt_of(40, 6), prompt_of(40, 7)
    before = [request(1, first), request(2, second)]
    crossed = request(3, first[:16] + second[16:])
    assert not cache_matters(gqa, before, crossed)
    monkeypatch.setattr(server.engine.sequence, "block_hash", lambda parent, tokens: block_hash(b"", tokens))
    assert cache_matters(gqa, before, crossed)


def cached_for_another_tenant(model: GPT) -> int:
    core = engine_core(model)
    decode(core, [request(1, prompt_of(40, 8), salt="a")])
    return decode(core, [request(2, prompt_of(40, 8), salt="b")]).cached_tokens(2)


def test_control_salt(gqa: GPT, monkeypatch: pytest.MonkeyPatch) -> None:
    assert cached_for_another_tenant(gqa) == 0
    monkeypatch.setattr(server.engine.sequence, "salted_root", lambda salt: salted_root(""))
    assert cached_for_another_tenant(gqa) == 32


def test_control_hit_without_the_last_token(gqa: GPT, monkeypatch: pytest.MonkeyPatch) -> None:
    """A hit that covers the last token leaves nothing to compute, and so no logits of its own to choose by."""
    whole = request(1, prompt_of(32, 9))
    mate = request(2, prompt_of(30, 10))

    def hit_in_company() -> Result:
        core = engine_core(gqa)
        decode(core, [whole])
        return decode(core, [mate, replace(whole, id=3)]).results[3]

    assert hit_in_company() == alone(gqa, whole)
    monkeypatch.setattr(EngineSequence, "max_shared_blocks", property(lambda self: self.num_tokens // BLOCK_SIZE))
    assert hit_in_company() != alone(gqa, whole)


def test_control_experts_without_capacity(moe: GPT, monkeypatch: pytest.MonkeyPatch) -> None:
    run_experts = MixtureOfExperts._run_experts

    def with_capacity(self: MixtureOfExperts, rows: Tensor, experts: Tensor) -> Tensor:
        outputs = run_experts(self, rows, experts)
        capacity = experts.numel() // self.up.shape[0] + 1
        for expert in range(self.up.shape[0]):
            dropped = (experts == expert).nonzero()[capacity:]
            outputs[dropped[:, 0], dropped[:, 1]] = 0
        return outputs

    monkeypatch.setattr(MixtureOfExperts, "_run_experts", with_capacity)
    assert company_matters(moe)
