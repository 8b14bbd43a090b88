"""Our logits against those of transformers, over folders written by either side. The tolerance is absolute, float32."""

import json
import re
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import gguf
import pytest
import torch
import transformers
from model_cases import FAMILIES, MIXTRAL_LIKE, PLAIN, logits, random_model, random_tokens
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from model.checkpoint import load_checkpoint, save_checkpoint
from model.config import ModelConfig
from model.config_json import read_config
from model.gpt import GPT

TOLERANCE = 1e-4
CPU = torch.device("cpu")

LLAMA_SIZES = {
    "vocab_size": 96,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 64,
}
GPT2_SIZES = {"vocab_size": 96, "n_positions": 64, "n_embd": 32, "n_layer": 2, "n_head": 4}

# What transformers is asked to make: (configuration class, its fields).
THEIRS: dict[str, Callable[[], transformers.PreTrainedConfig]] = {
    "gpt2": lambda: transformers.GPT2Config(**GPT2_SIZES),
    "gpt2 untied relu": lambda: transformers.GPT2Config(
        **GPT2_SIZES, tie_word_embeddings=False, activation_function="relu", n_inner=40
    ),
    "gpt2 gelu": lambda: transformers.GPT2Config(**GPT2_SIZES, activation_function="gelu", layer_norm_epsilon=1e-3),
    "llama": lambda: transformers.LlamaConfig(**LLAMA_SIZES),
    "llama tied with biases": lambda: transformers.LlamaConfig(
        **LLAMA_SIZES, tie_word_embeddings=True, attention_bias=True, mlp_bias=True
    ),
    "llama with wide heads": lambda: transformers.LlamaConfig(
        **LLAMA_SIZES, head_dim=16, rope_parameters={"rope_type": "default", "rope_theta": 300_000.0}
    ),
    "mistral": lambda: transformers.MistralConfig(**LLAMA_SIZES, sliding_window=6),
    "mistral without a window": lambda: transformers.MistralConfig(**LLAMA_SIZES, sliding_window=None),
    "qwen3": lambda: transformers.Qwen3Config(**LLAMA_SIZES, head_dim=8),
    "qwen3 with biases": lambda: transformers.Qwen3Config(**LLAMA_SIZES, head_dim=16, attention_bias=True),
    "mixtral": lambda: transformers.MixtralConfig(**LLAMA_SIZES, num_local_experts=4, num_experts_per_tok=2),
    "mixtral with a window": lambda: transformers.MixtralConfig(
        **LLAMA_SIZES, num_local_experts=3, num_experts_per_tok=1, sliding_window=5, tie_word_embeddings=True
    ),
}
OURS = [(family, config) for family, configs in FAMILIES.items() for config in configs]


def their_model(config: transformers.PreTrainedConfig) -> nn.Module:
    """A random model of transformers' with every parameter, biases and norms included, large enough to matter."""
    model: nn.Module = transformers.AutoModelForCausalLM.from_config(config, dtype=torch.float32).eval()
    generator = torch.Generator().manual_seed(5)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            parameter.normal_(0.0, 0.2, generator=generator)
            if "norm" in name or "ln_" in name:
                parameter.add_(1.0)
    return model


def their_logits(model: nn.Module, tokens: Tensor) -> Tensor:
    with torch.no_grad():
        out: Tensor = model(tokens).logits
    return out


def open_with_transformers(folder: Path) -> nn.Module:
    model, report = transformers.AutoModelForCausalLM.from_pretrained(
        folder, dtype=torch.float32, output_loading_info=True
    )
    assert not any(report.values()), report
    out: nn.Module = model.eval()
    return out


@pytest.mark.parametrize("name", sorted(THEIRS))
def test_a_folder_of_transformers_gives_its_logits_here(name: str, tmp_path: Path) -> None:
    theirs = their_model(THEIRS[name]())
    theirs.save_pretrained(tmp_path)
    ours = load_checkpoint(tmp_path, torch.float32, CPU)
    tokens = random_tokens(ours.config, 2, 40)
    wanted = their_logits(theirs, tokens)
    assert wanted.abs().max() > 0.5
    torch.testing.assert_close(logits(ours, tokens), wanted, atol=TOLERANCE, rtol=0)


@pytest.mark.parametrize(("family", "config"), OURS, ids=[f"{family} {i}" for i, (family, _) in enumerate(OURS)])
def test_our_folder_gives_our_logits_in_transformers(family: str, config: ModelConfig, tmp_path: Path) -> None:
    ours = random_model(config)
    save_checkpoint(ours, tmp_path, eos_token_ids=(7,))
    theirs = open_with_transformers(tmp_path)
    assert theirs.config.model_type == family
    tokens = random_tokens(config, 2, 40)
    torch.testing.assert_close(their_logits(theirs, tokens), logits(ours, tokens), atol=TOLERANCE, rtol=0)


@pytest.mark.parametrize("theta", [10_000.0, 500_000.0])
def test_far_positions_turn_by_exactly_the_angles_of_transformers(theta: float, tmp_path: Path) -> None:
    # A rounding error in a frequency grows with the position it is multiplied by.
    ours = random_model(replace(PLAIN, num_layers=1, head_dim=64, context_length=8192, rope_theta=theta))
    save_checkpoint(ours, tmp_path)
    rotary = open_with_transformers(tmp_path).model.rotary_emb(torch.zeros(1), torch.arange(8192)[None])
    assert ours.position_table is not None
    cosine, sine = ours.position_table.rows(torch.arange(8192)).unbind(-2)
    assert torch.equal(cosine, rotary[0][0, :, :32])
    assert torch.equal(sine, rotary[1][0, :, :32])


def test_experts_are_written_one_by_one_as_on_the_hub(tmp_path: Path) -> None:
    save_checkpoint(random_model(MIXTRAL_LIKE), tmp_path)
    with safe_open(tmp_path / "model.safetensors", "pt") as file:
        names = [name for name in file.keys() if "layers.1.block_sparse_moe" in name]  # noqa: SIM118
    wanted = {f"experts.{expert}.w{index}.weight" for expert in range(4) for index in (1, 2, 3)} | {"gate.weight"}
    assert {name.partition("block_sparse_moe.")[2] for name in names} == wanted


def test_fused_experts_of_transformers_are_read(tmp_path: Path) -> None:
    theirs = their_model(THEIRS["mixtral"]())
    theirs.save_pretrained(tmp_path, save_original_format=False)
    with safe_open(tmp_path / "model.safetensors", "pt") as file:
        assert "model.layers.0.mlp.experts.gate_up_proj" in file.keys()  # noqa: SIM118
    ours = load_checkpoint(tmp_path, torch.float32, CPU)
    tokens = random_tokens(ours.config, 1, 20)
    torch.testing.assert_close(logits(ours, tokens), their_logits(theirs, tokens), atol=TOLERANCE, rtol=0)


@pytest.mark.parametrize("name", ["gpt2", "llama", "mixtral"])
def test_sharded_folders_are_read(name: str, tmp_path: Path) -> None:
    theirs = their_model(THEIRS[name]())
    theirs.save_pretrained(tmp_path, max_shard_size="20KB")
    assert len(list(tmp_path.glob("model-*.safetensors"))) > 2
    ours = load_checkpoint(tmp_path, torch.float32, CPU)
    tokens = random_tokens(ours.config, 1, 20)
    torch.testing.assert_close(logits(ours, tokens), their_logits(theirs, tokens), atol=TOLERANCE, rtol=0)


def test_a_bare_gpt2_without_prefix_and_with_mask_buffers_is_read(tmp_path: Path) -> None:
    theirs = their_model(THEIRS["gpt2"]())
    tensors = {name.removeprefix("transformer."): tensor for name, tensor in theirs.named_parameters()}
    buffers = {f"h.{layer}.attn.bias": torch.ones(1, 1, 64, 64, dtype=torch.uint8) for layer in range(2)}
    theirs.config.save_pretrained(tmp_path)
    save_file({**tensors, **buffers}, tmp_path / "model.safetensors")
    ours = load_checkpoint(tmp_path, torch.float32, CPU)
    tokens = random_tokens(ours.config, 1, 20)
    torch.testing.assert_close(logits(ours, tokens), their_logits(theirs, tokens), atol=TOLERANCE, rtol=0)


@pytest.mark.parametrize(("family", "config"), OURS, ids=[f"{family} {i}" for i, (family, _) in enumerate(OURS)])
def test_a_round_trip_through_transformers_changes_nothing(family: str, config: ModelConfig, tmp_path: Path) -> None:
    ours = random_model(config)
    save_checkpoint(ours, tmp_path / "ours")
    open_with_transformers(tmp_path / "ours").save_pretrained(tmp_path / "theirs")
    back = load_checkpoint(tmp_path / "theirs", torch.float32, CPU)
    assert back.config == config
    assert_same_weights(back, ours)


def test_bfloat16_folders_are_cast_while_read(tmp_path: Path) -> None:
    their_model(THEIRS["llama"]()).to(torch.bfloat16).save_pretrained(tmp_path)
    ours, theirs = load_checkpoint(tmp_path, torch.float32, CPU), open_with_transformers(tmp_path)
    tokens = random_tokens(ours.config, 1, 20)
    torch.testing.assert_close(logits(ours, tokens), their_logits(theirs, tokens), atol=TOLERANCE, rtol=0)


@pytest.mark.parametrize("name", ["gpt2", "llama", "mistral", "qwen3", "mixtral"])
def test_the_converter_of_llama_cpp_knows_every_tensor_name(name: str, tmp_path: Path) -> None:
    save_checkpoint(random_model(FAMILIES[name][0]), tmp_path)
    with safe_open(tmp_path / "model.safetensors", "pt") as file:
        # It stacks w1, w2 and w3 of all experts under these names.
        names = {re.sub(r"experts\.\d+\.", "experts.", key) for key in file.keys()}  # noqa: SIM118
    architectures = {value: key for key, value in gguf.MODEL_ARCH_NAMES.items()}
    architecture = architectures[name if name in ("gpt2", "qwen3") else "llama"]
    known = gguf.get_tensor_name_map(architecture, 2)
    unknown = [key for key in names if known.get_name(key, try_suffixes=(".weight", ".bias")) is None]
    assert unknown == []


def test_older_spellings_of_a_llama_config_mean_the_same(tmp_path: Path) -> None:
    transformers.LlamaConfig(**LLAMA_SIZES).save_pretrained(tmp_path)
    raw = json.loads((tmp_path / "config.json").read_text())
    wanted = read_config(tmp_path)
    raw["rope_theta"] = raw.pop("rope_parameters")["rope_theta"]
    del raw["head_dim"]
    (tmp_path / "config.json").write_text(json.dumps({**raw, "rope_scaling": None}))
    assert read_config(tmp_path) == wanted


def assert_same_weights(one: GPT, other: GPT) -> None:
    theirs = dict(other.named_parameters())
    assert {name for name, _ in one.named_parameters()} == set(theirs)
    for name, parameter in one.named_parameters():
        assert torch.equal(parameter, theirs[name]), name
