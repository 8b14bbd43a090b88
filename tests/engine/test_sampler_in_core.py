"""Whole requests by the native sampler and by torch's, over one model: the same tokens, and nothing else differs."""

from collections.abc import Sequence
from dataclasses import replace

import pytest
import torch
from backends import choose_on
from engine_driver import Result, decode, engine_core
from request_mix import request_mix
from tiny_models import FAMILIES, VOCAB_SIZE, tiny_model

from model.gpt import GPT
from model.native.abi import LibraryError, open_library
from server.engine.params import SamplingParams
from server.engine.sampler import Observe, Row, observe_nothing
from server.engine.types import SequenceRequest
from server.engine.verify import Choose

# What the mix leaves out, alone and together with what the library does by itself.
RARER = (
    SamplingParams(typical_p=0.7, top_k=30),
    SamplingParams(epsilon_cutoff=0.01, eta_cutoff=0.02),
    SamplingParams(top_a=0.1, top_n_sigma=1.5),
    SamplingParams(xtc_probability=0.5, xtc_threshold=0.05),
    SamplingParams(dynatemp_range=0.5, dynatemp_exponent=1.5, top_p=0.9),
    SamplingParams(dry_multiplier=1.0, dry_breakers=((3,),), repetition_penalty=1.1),
    SamplingParams(no_repeat_ngram_size=2, temperature=0.0),
    SamplingParams(bad_words=((5,), (7, 9)), min_p=0.02),
    SamplingParams(mirostat=1, frequency_penalty=0.3),
    SamplingParams(mirostat=2, mirostat_tau=2.0),
    SamplingParams(samplers=("top_k", "temperature", "top_p"), top_k=12, temperature=1.7, top_p=0.8),
    SamplingParams(repeat_last_n=8, presence_penalty=0.8, temperature=0.0, ignore_eos=True),
    SamplingParams(temperature=1e-3, top_p=0.999),
)


@pytest.fixture(scope="module")
def native() -> Choose:
    try:
        open_library()
    except LibraryError as error:
        pytest.skip(str(error))
    return choose_on("native")


@pytest.fixture(scope="module")
def model() -> GPT:
    return tiny_model(FAMILIES["gqa"])


def requests_of_every_kind(seed: int) -> list[SequenceRequest]:
    mixed = request_mix(40, seed=seed, max_prompt=60, max_tokens=16)
    prompts = torch.randint(VOCAB_SIZE, (2 * len(RARER), 20), generator=torch.Generator().manual_seed(seed)).tolist()
    rarer = [
        SequenceRequest(
            100 + index,
            tuple(prompt),
            replace(RARER[index % len(RARER)], max_tokens=16, seed=2**63 + index, logprobs=2),
        )
        for index, prompt in enumerate(prompts)
    ]
    return mixed + rarer


def decoded(model: GPT, requests: Sequence[SequenceRequest], choose: Choose) -> dict[int, Result]:
    return decode(engine_core(model, max_step_tokens=200, choose=choose), requests).results


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_requests_of_every_kind_get_what_torch_chooses(model: GPT, native: Choose, seed: int) -> None:
    requests = requests_of_every_kind(seed)
    assert decoded(model, requests, native) == decoded(model, requests, choose_on("torch"))


def test_one_other_token_would_be_found(model: GPT, native: Choose) -> None:
    def moved(
        logits: torch.Tensor, places: Sequence[int], rows: Sequence[Row], observe: Observe = observe_nothing
    ) -> list[int]:
        return native(logits, places, [row._replace(position=row.position + 1) for row in rows], observe)

    requests = requests_of_every_kind(0)
    assert decoded(model, requests, moved) != decoded(model, requests, native)
