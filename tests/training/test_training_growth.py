"""Growth: a deeper model begins as the one it grows from, trains in every layer, and what is refused."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor
from training_runs import TINY, TINY_GPT2, TINY_MOE, fresh_model, run_quietly, tiny_run, with_length, write_text

from model.attention import causal_fused_attend
from model.checkpoint import load_checkpoint
from model.config import ModelConfig
from model.gpt import GPT
from training.config import TrainingError
from training.growth import grow

CPU = torch.device("cpu")
TOKENS = torch.arange(12).view(1, 12)


def logits(model: GPT) -> Tensor:
    with torch.no_grad():
        return model.unembed(model(TOKENS, torch.arange(12), causal_fused_attend(model.config, 12, CPU)))


def deeper(config: ModelConfig, num_layers: int) -> ModelConfig:
    return replace(config, num_layers=num_layers)


@pytest.mark.parametrize("config", [TINY, TINY_GPT2, TINY_MOE], ids=["llama", "gpt2", "moe"])
@pytest.mark.parametrize("num_layers", [2, 3, 6])
def test_a_grown_model_computes_what_its_base_does(config: ModelConfig, num_layers: int) -> None:
    base, model = fresh_model(config, seed=1), fresh_model(deeper(config, num_layers), seed=2)
    for parameter in base.parameters():
        torch.nn.init.normal_(parameter, std=0.1)  # biases and norms too
    grow(model, base)
    assert torch.equal(logits(model), logits(base))


def test_a_trained_layer_comes_before_its_copies() -> None:
    base, model = fresh_model(TINY, seed=1), fresh_model(deeper(TINY, 6), seed=2)
    grow(model, base)
    adds = [bool(layer.feed_forward.down.weight.any()) for layer in model.layers]
    assert adds == [True, False, False, True, False, False]


def test_every_layer_of_a_grown_model_learns(tmp_path: Path) -> None:
    small = with_length(tiny_run(write_text(tmp_path), tmp_path / "base", max_steps=4), num_evaluations=1)
    assert run_quietly(small)
    base = tmp_path / "base" / "checkpoint"
    grown = replace(small, model=deeper(TINY, 4), out=tmp_path / "grown", grow_from=base)
    assert run_quietly(grown)
    after = load_checkpoint(tmp_path / "grown" / "checkpoint", torch.float32, CPU)
    assert all(layer.feed_forward.down.weight.any() for layer in after.layers)


def test_a_base_with_other_tokens_is_refused(tmp_path: Path) -> None:
    small = with_length(tiny_run(write_text(tmp_path), tmp_path / "base", max_steps=1), num_evaluations=1)
    assert run_quietly(small)
    other = tmp_path / "other.txt"
    other.write_text("Nothing like it, with quite other letters. " * 60)
    data = replace(small.data, path=other)
    config = replace(small, data=data, out=tmp_path / "grown", grow_from=tmp_path / "base" / "checkpoint")
    with pytest.raises(TrainingError, match=r"grow_from is .*base"):
        run_quietly(config)


@pytest.mark.parametrize(
    ("config", "complaint"),
    [
        (deeper(TINY, 1), "model.num_layers is 1; it must be at least grow_from's 2"),
        (replace(TINY, intermediate_size=64), "must be the run's model but for its layers"),
    ],
)
def test_a_base_that_does_not_fit_is_refused(config: ModelConfig, complaint: str) -> None:
    with pytest.raises(TrainingError, match=complaint):
        grow(fresh_model(config), fresh_model(TINY))


def test_a_model_with_norms_behind_its_layers_cannot_grow() -> None:
    config = replace(TINY, norm_placement="post")
    with pytest.raises(TrainingError, match="post"):
        grow(fresh_model(deeper(config, 4)), fresh_model(config))
