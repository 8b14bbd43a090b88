"""What a beam search costs stays bounded: by who asks for the same, and by how many tokens end a text."""

from collections.abc import Sequence
from dataclasses import replace

import pytest
from engine_driver import Result, decode, engine_core
from test_beam_search import PARAMS, PROMPT, RULES, check_against_oracle
from tiny_models import FAMILIES, VOCAB_SIZE, tiny_model

from model.gpt import GPT
from server.engine.beam_group import BeamGroup, Candidate, Ended
from server.engine.types import MAX_BEAMS, BeamSearch, SequenceRequest


@pytest.fixture(scope="module")
def model() -> GPT:
    return tiny_model(FAMILIES["gqa"])


def test_a_step_says_no_more_of_a_prompt_than_one_search_may_have_hypotheses(model: GPT) -> None:
    """However many ask for the same: each gets a copy of the prompt's log-probabilities."""
    params = replace(PARAMS, max_tokens=2, prompt_logprobs=2)
    request = SequenceRequest(0, PROMPT, params, beams=BeamSearch(2))
    alone = decode(engine_core(model), [request]).results[0]
    core = engine_core(model, max_step_tokens=len(PROMPT), max_running=4)
    steps: list[int] = []
    for id_ in range(3 * MAX_BEAMS + 1):
        core.add(replace(request, id=id_))
    results: dict[int, Result] = {}
    while core.has_work():
        outputs = core.step().outputs
        steps.append(sum(len(output.prompt_logprobs) for output in outputs))
        for output in outputs:
            results.setdefault(output.id, Result()).add(output)
    assert results == dict.fromkeys(range(3 * MAX_BEAMS + 1), alone)
    assert max(steps) <= MAX_BEAMS * len(PROMPT) < sum(steps)


@pytest.mark.parametrize("rules", [RULES[3], RULES[6], RULES[7]], ids=str)
def test_the_number_of_ending_tokens_does_not_change_how_many_continuations_are_looked_at(
    model: GPT, rules: BeamSearch, monkeypatch: pytest.MonkeyPatch
) -> None:
    params = replace(PARAMS, stop_token_ids=tuple(range(1, VOCAB_SIZE - 8)))
    counts: list[int] = []
    split = BeamGroup.split

    def counting(self: BeamGroup, candidates: Sequence[Candidate], length: int) -> tuple[list[Candidate], list[Ended]]:
        counts.append(len(candidates))
        return split(self, candidates, length)

    monkeypatch.setattr(BeamGroup, "split", counting)
    check_against_oracle(model, params, rules)
    assert 0 < max(counts) <= 2 * rules.width * (rules.width // rules.num_groups)
