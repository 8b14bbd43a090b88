"""The recipes: a name and a configuration each. What was tried before is in docs/training.md."""

from pathlib import Path

from model.config import ModelConfig
from training.config import (
    DataOptions,
    DistillOptions,
    LengthOptions,
    OptimizerOptions,
    SampleOptions,
    ScheduleOptions,
    TrainConfig,
)

Presets = dict[str, tuple[str, TrainConfig]]


def presets() -> Presets:
    """Description and configuration of every preset, by name."""
    return {
        "shakespeare-char": ("GPT-2 layout, characters, all plays; shipped", _shakespeare_char()),
        "shakespeare-gqa": ("Llama layout, fewer kv heads, byte-level BPE, all plays; shipped", _shakespeare_gqa()),
        "shakespeare-moe": ("Mixtral layout, 2 of 4 experts, byte-level BPE, all plays; shipped", _shakespeare_moe()),
        "shakespeare-draft": (
            "one layer distilled from shakespeare-char, to draft for it; shipped",
            _shakespeare_draft(),
        ),
        "tinyshakespeare-2min": ("benchmark: 110 s on two cores; give --data.path", _benchmark("2min", 110.0, 0.0)),
        "tinyshakespeare-5min": ("benchmark: 300 s on two cores; give --data.path", _benchmark("5min", 300.0, 0.1)),
        "smoke": ("seconds; shows that everything runs; give --data.path or install the plays", _smoke()),
    }


def _gpt2(num_layers: int, hidden_size: int, num_heads: int, context_length: int) -> ModelConfig:
    """GPT-2's architecture, but with the exact GELU: the tanh form costs a quarter more time per step on CPUs."""
    return ModelConfig(
        vocab_size=512,
        hidden_size=hidden_size,
        num_layers=num_layers,
        num_heads=num_heads,
        num_kv_heads=num_heads,
        head_dim=hidden_size // num_heads,
        intermediate_size=4 * hidden_size,
        context_length=context_length,
        norm="layernorm",
        positions="learned",
        feed_forward="gelu",
        attention_bias=True,
        feed_forward_bias=True,
    )


def _shakespeare_char() -> TrainConfig:
    return TrainConfig(
        model=_gpt2(num_layers=4, hidden_size=192, num_heads=3, context_length=256),
        out=Path("runs/shakespeare-char"),
        data=DataOptions(tokenizer="char"),
        optimizer=OptimizerOptions(muon_learning_rate=0.01),
        length=LengthOptions(max_steps=1_600, batch_size=16, num_evaluations=8),
        sample=SampleOptions(max_tokens=240),
        dropout=0.05,
    )


def _shakespeare_draft() -> TrainConfig:
    """One layer, as wide as the target's: what a draft costs is passes through layers, and at this width it can begin
    with the target's own first layer."""
    return TrainConfig(
        model=_gpt2(num_layers=1, hidden_size=192, num_heads=3, context_length=256),
        out=Path("runs/shakespeare-draft"),
        data=DataOptions(tokenizer="char"),
        optimizer=OptimizerOptions(muon_learning_rate=0.01),
        length=LengthOptions(max_steps=1_200, batch_size=16, num_evaluations=8),
        sample=SampleOptions(max_tokens=240),
        distill=DistillOptions(
            target=Path("checkpoints/shakespeare-char"),
            start_from_target=True,
            num_tokens=800_000,
            prompt_length=64,
            temperatures=(1.0, 0.8, 0.0),
        ),
    )


def _shakespeare_gqa() -> TrainConfig:
    return TrainConfig(
        model=ModelConfig(
            vocab_size=1_024,
            hidden_size=192,
            num_layers=4,
            num_heads=6,
            num_kv_heads=2,
            head_dim=32,
            intermediate_size=512,
            context_length=256,
        ),
        out=Path("runs/shakespeare-gqa"),
        data=DataOptions(tokenizer="bpe"),
        optimizer=OptimizerOptions(muon_learning_rate=0.01),
        length=LengthOptions(max_steps=1_400, batch_size=16, num_evaluations=7),
        dropout=0.05,
    )


def _shakespeare_moe() -> TrainConfig:
    return TrainConfig(
        model=ModelConfig(
            vocab_size=1_024,
            hidden_size=128,
            num_layers=4,
            num_heads=4,
            num_kv_heads=2,
            head_dim=32,
            intermediate_size=256,
            context_length=256,
            num_experts=4,
            num_experts_per_token=2,
        ),
        out=Path("runs/shakespeare-moe"),
        data=DataOptions(tokenizer="bpe"),
        optimizer=OptimizerOptions(muon_learning_rate=0.01),
        length=LengthOptions(max_steps=1_100, batch_size=16, num_evaluations=5),
        dropout=0.05,
    )


def _benchmark(name: str, seconds: float, dropout: float) -> TrainConfig:
    """What learns fastest on two cores, in no published layout: rotary positions and normed queries and keys, but the
    plain GELU, which needs one product less than SwiGLU and no copies of halves."""
    return TrainConfig(
        model=ModelConfig(
            vocab_size=512,
            hidden_size=192,
            num_layers=4,
            num_heads=3,
            num_kv_heads=3,
            head_dim=64,
            intermediate_size=768,
            context_length=128,
            feed_forward="gelu",
            qk_norm=True,
        ),
        out=Path(f"runs/tinyshakespeare-{name}"),
        optimizer=OptimizerOptions(muon_learning_rate=0.01, learning_rate=0.01),
        schedule=ScheduleOptions(warmup_fraction=0.05),
        length=LengthOptions(max_seconds=seconds, batch_size=16),
        sample=SampleOptions(max_tokens=100),
        dropout=dropout,
    )


def _smoke() -> TrainConfig:
    return TrainConfig(
        model=_gpt2(num_layers=2, hidden_size=64, num_heads=2, context_length=64),
        out=Path("runs/smoke"),
        length=LengthOptions(max_steps=60, batch_size=8, num_evaluations=3),
        sample=SampleOptions(max_tokens=40),
    )
