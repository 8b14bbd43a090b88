"""The recipes: a name and a configuration each. What was tried before is in docs/training.md."""

from dataclasses import replace
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

# One play held out: validating a model of 100M parameters on four would take longer than training it.
TARGET_RATES = OptimizerOptions(muon_learning_rate=0.01, learning_rate=0.002)
PLAYS_FOR_TARGETS = DataOptions(tokenizer="bpe", validation_fraction=0.03)


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
        "plays-10m": ("GPT-2 layout, 10.9M parameters, byte-level BPE: a target to speculate for", _plays_10m()),
        "plays-100m-base": ("the first 2 layers of plays-100m, trained alone: where it starts", _plays_100m_base()),
        "plays-100m": (
            "Llama layout, 97.5M parameters, grown from plays-100m-base: a target to speculate for",
            _plays_100m(),
        ),
        "plays-10m-draft": ("one layer distilled from plays-10m, to draft for it", _plays_10m_draft()),
        "plays-100m-draft": ("two narrow layers distilled from plays-100m, to draft for it", _plays_100m_draft()),
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


def _plays_10m() -> TrainConfig:
    return TrainConfig(
        model=replace(_gpt2(num_layers=6, hidden_size=384, num_heads=6, context_length=256), vocab_size=1_024),
        out=Path("runs/plays-10m"),
        data=PLAYS_FOR_TARGETS,
        optimizer=TARGET_RATES,
        schedule=ScheduleOptions(warmup_fraction=0.05),
        length=LengthOptions(max_seconds=1_500.0, batch_size=8, num_evaluations=2),
        sample=SampleOptions(max_tokens=60),
    )


def _llama_768(num_layers: int) -> ModelConfig:
    return ModelConfig(
        vocab_size=1_024,
        hidden_size=768,
        num_layers=num_layers,
        num_heads=12,
        num_kv_heads=4,
        head_dim=64,
        intermediate_size=2_816,
        context_length=256,
    )


def _plays_100m_base() -> TrainConfig:
    return TrainConfig(
        model=_llama_768(num_layers=2),
        out=Path("runs/plays-100m-base"),
        data=PLAYS_FOR_TARGETS,
        optimizer=TARGET_RATES,
        schedule=ScheduleOptions(warmup_fraction=0.05),
        length=LengthOptions(max_seconds=1_100.0, batch_size=8, num_evaluations=2),
        sample=SampleOptions(max_tokens=60),
    )


def _plays_100m() -> TrainConfig:
    return TrainConfig(
        model=_llama_768(num_layers=12),
        out=Path("runs/plays-100m"),
        grow_from=Path("runs/plays-100m-base/checkpoint"),
        data=PLAYS_FOR_TARGETS,
        # Making 12 layers' matrices orthogonal would take longer than their passes over so small a batch.
        optimizer=OptimizerOptions(matrices="adamw", learning_rate=5e-4),
        schedule=ScheduleOptions(warmup_fraction=0.1),
        length=LengthOptions(max_seconds=800.0, batch_size=8, num_evaluations=1, max_validation_tokens=8_192),
        sample=SampleOptions(max_tokens=60),
    )


def _draft(name: str, model: ModelConfig, num_tokens: int, num_steps: int) -> TrainConfig:
    """For a target that is dear to ask: it writes little, is asked only while it writes, and all is read often."""
    return TrainConfig(
        model=model,
        out=Path(f"runs/{name}-draft"),
        data=PLAYS_FOR_TARGETS,
        optimizer=OptimizerOptions(muon_learning_rate=0.02, learning_rate=0.005),
        length=LengthOptions(max_steps=num_steps, batch_size=16, num_evaluations=2),
        sample=SampleOptions(max_tokens=60),
        distill=DistillOptions(
            target=Path(f"runs/{name}/checkpoint"),
            num_tokens=num_tokens,
            num_validation_tokens=4_096,
            prompt_length=48,
            temperatures=(0.8, 0.0),
            writing_precision="bfloat16",
            keep_logits=True,
        ),
    )


def _plays_100m_draft() -> TrainConfig:
    model = replace(_llama_768(num_layers=2), hidden_size=256, num_heads=4, num_kv_heads=2, intermediate_size=768)
    return _draft("plays-100m", model, num_tokens=32_768, num_steps=150)


def _plays_10m_draft() -> TrainConfig:
    model = replace(_gpt2(num_layers=1, hidden_size=192, num_heads=3, context_length=256), vocab_size=1_024)
    return _draft("plays-10m", model, num_tokens=98_304, num_steps=300)


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
