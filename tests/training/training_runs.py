"""Tiny models, texts and runs for the training tests."""

import io
from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor

from model.config import ModelConfig
from model.gpt import GPT, initialise
from training.config import DataOptions, LengthOptions, SampleOptions, TrainConfig
from training.dataset import TokenArray
from training.loop import Trainer
from training.parallel import Alone
from training.prepare import build_model, make_tokenizer, read_corpus, tokenize
from training.run import train

TINY = ModelConfig(
    vocab_size=320,
    hidden_size=32,
    num_layers=2,
    num_heads=4,
    num_kv_heads=2,
    head_dim=8,
    intermediate_size=48,
    context_length=16,
)
TINY_MOE = replace(TINY, num_experts=4, num_experts_per_token=2, intermediate_size=24)
TINY_GPT2 = replace(
    TINY,
    num_kv_heads=4,
    norm="layernorm",
    positions="learned",
    feed_forward="gelu",
    attention_bias=True,
    feed_forward_bias=True,
)


def write_text(folder: Path, repeats: int = 60) -> Path:
    """A small text with something to learn in it."""
    lines = [f"{name}:\nThe {thing} is {number}.\n" for number in "abc" for name in ("ANN", "BOB") for thing in "xyz"]
    path = folder / "text.txt"
    path.write_text("\n".join(lines) * (repeats // 12 + 1))
    return path


def tiny_run(text: Path, out: Path, model: ModelConfig = TINY, max_steps: int = 12) -> TrainConfig:
    """A run of seconds, in float32, with dropout."""
    return TrainConfig(
        model=model,
        out=out,
        data=DataOptions(path=text),
        length=LengthOptions(max_steps=max_steps, batch_size=4, num_evaluations=3, log_interval=1),
        sample=SampleOptions(max_tokens=4),
        dropout=0.1,
        precision="float32",
        checkpoint_dtype="float32",
    )


def with_length(config: TrainConfig, **changes: int | float | None) -> TrainConfig:
    """`config` with other LengthOptions."""
    return replace(config, length=replace(config.length, **changes))


def run_quietly(config: TrainConfig, stop_after: int | None = None) -> bool:
    """Train in this process; `stop_after` asks to stop after that many steps."""
    steps = iter(range(1, 1_000_000))
    return train(config, Alone(), io.StringIO(), lambda: next(steps) == stop_after)


def make_trainer(config: TrainConfig) -> Trainer:
    """A trainer whose folder is never prepared: for single steps."""
    corpus = read_corpus(config)
    material = tokenize(corpus, make_tokenizer(config, corpus))
    return Trainer(config, material, build_model(config, material.tokenizer.vocab_size, torch.device("cpu")), Alone())


def fresh_model(config: ModelConfig, seed: int = 0) -> GPT:
    """A model with random weights."""
    model = GPT(config)
    initialise(model, torch.Generator().manual_seed(seed))
    return model


def weights(path: Path) -> dict[str, Tensor]:
    """The model in a state file."""
    stored: dict[str, dict[str, Tensor]] = torch.load(path, weights_only=True)
    return stored["model"]


def flat_tokens(tokens: TokenArray) -> list[int]:
    """An array as a list."""
    return [int(token) for token in tokens]
