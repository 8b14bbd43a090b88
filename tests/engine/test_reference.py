"""The engine against the reference decoder, which has no cache, no batch and no step."""

import pytest
from backends import on_every_backend
from engine_driver import EOS, decode, engine_core
from request_mix import request_mix
from tiny_models import FAMILIES, VOCAB_SIZE, tiny_model
from torch import Tensor

from model.gpt import GPT
from model.reference import Choose, generate
from server.engine import sampler
from server.engine.sampler import DecodingState, Row
from server.engine.types import SequenceRequest

pytestmark = on_every_backend


@pytest.fixture(scope="module", params=list(FAMILIES))
def model(request: pytest.FixtureRequest) -> GPT:
    return tiny_model(FAMILIES[request.param])


def ending_tokens(request: SequenceRequest) -> frozenset[int]:
    return frozenset(request.params.stop_token_ids) | (frozenset() if request.params.ignore_eos else {EOS})


def sampler_of(request: SequenceRequest) -> Choose:
    """The engine's sampler, on its own, with its own count of what was said."""
    state = DecodingState.of(request.params, request.prompt, VOCAB_SIZE)

    def choose(logits: Tensor, position: int) -> int:
        is_early = position - len(request.prompt) < request.params.min_tokens
        withheld = tuple(ending_tokens(request)) if is_early else ()
        (token,) = sampler.choose(logits.clone()[None], [Row(request.params, position, withheld, state)])
        return token

    return choose


def test_greedy_tokens_are_the_references(model: GPT) -> None:
    requests = [given for given in request_mix(40, seed=4) if given.params.temperature == 0][:6]
    plain = [given for given in requests if given.params.repetition_penalty == 1]
    results = decode(engine_core(model), requests).results
    for given in plain:
        expected = generate(
            model, given.prompt, lambda logits, _: int(logits.argmax()), given.params.max_tokens, ending_tokens(given)
        )
        assert results[given.id].tokens == expected
    assert len({token for given in plain for token in results[given.id].tokens}) > 8


@pytest.mark.parametrize("seed", [1, *[pytest.param(seed, marks=pytest.mark.slow) for seed in range(2, 8)]])
def test_sampled_tokens_are_the_references(model: GPT, seed: int) -> None:
    requests = request_mix(10, seed=seed, max_prompt=150)
    results = decode(engine_core(model, max_step_tokens=40), requests).results
    for given in requests:
        expected = generate(model, given.prompt, sampler_of(given), given.params.max_tokens, ending_tokens(given))
        assert results[given.id].tokens == expected


def test_the_reference_differs_for_another_seed(model: GPT) -> None:
    """The comparison can tell: noise of another seed gives other tokens."""
    given = next(given for given in request_mix(10, seed=1, max_tokens=24) if given.params.temperature > 1)
    other = request_mix(10, seed=2)[given.id]
    mixed = SequenceRequest(given.id, given.prompt, other.params)
    assert generate(model, given.prompt, sampler_of(given), 12, frozenset()) != generate(
        model, given.prompt, sampler_of(mixed), 12, frozenset()
    )
