import json
import os
from dataclasses import asdict, fields
from pathlib import Path

import pytest
import torch
from model_cases import EVERY, FAMILIES, GPT2_LIKE, MIXTRAL_LIKE, OWN, PLAIN, random_model
from safetensors import safe_open

from model import files
from model.checkpoint import CheckpointError, load_checkpoint, save_checkpoint
from model.config import ModelConfig
from model.config_json import best_layout, config_json, parse_config, read_config
from model.gpt import GPT
from model.layouts import LAYOUTS
from model.layouts.fields import Fields

CPU = torch.device("cpu")


@pytest.mark.parametrize("name", sorted(EVERY))
def test_saving_and_loading_changes_nothing(name: str, tmp_path: Path) -> None:
    model = random_model(EVERY[name])
    save_checkpoint(model, tmp_path)
    loaded = load_checkpoint(tmp_path, torch.float32, CPU)
    assert loaded.config == model.config
    wanted = model.state_dict()
    assert loaded.state_dict().keys() == wanted.keys()
    for key, tensor in loaded.state_dict().items():
        assert torch.equal(tensor, wanted[key]), key


@pytest.mark.parametrize("name", sorted(OWN))
def test_configurations_without_a_counterpart_get_our_own_layout(name: str) -> None:
    assert config_json(OWN[name], dtype="float32")["model_type"] == "minigpt"


@pytest.mark.parametrize("family", sorted(FAMILIES))
def test_families_are_written_as_themselves(family: str) -> None:
    assert {best_layout(config).model_type for config in FAMILIES[family]} == {family}


def test_our_own_layout_keeps_every_field() -> None:
    # Each field in turn gets a value unlike the plain model's; a field added later without a value here fails.
    changes: dict[str, object] = {
        "vocab_size": 97,
        "hidden_size": 33,
        "num_layers": 3,
        "num_heads": 8,
        "num_kv_heads": 2,
        "head_dim": 10,
        "intermediate_size": 47,
        "context_length": 65,
        "norm": "layernorm",
        "norm_placement": "post",
        "norm_epsilon": 1e-4,
        "positions": "alibi",
        "rope_theta": 12.25,
        "feed_forward": "gelu_tanh",
        "attention_bias": True,
        "feed_forward_bias": True,
        "qk_norm": True,
        "tie_embeddings": False,
        "sliding_window": 17,
        "num_experts": 4,
        "num_experts_per_token": 2,
    }
    assert set(changes) == {field.name for field in fields(ModelConfig)}
    own = LAYOUTS[-1]
    for name, value in changes.items():
        # An expert count must come with a count per token and the other way round.
        base = asdict(PLAIN if not name.startswith("num_experts") else MIXTRAL_LIKE)
        base.update({"num_experts_per_token": 1} if name.startswith("num_experts") else {})
        config = ModelConfig(**{**base, name: value})
        stored = json.loads(json.dumps(own.write(config)))
        assert stored[name] == value
        assert own.parse(Fields(stored)) == config


def test_a_missing_field_of_our_own_layout_is_an_error() -> None:
    raw = config_json(OWN["alibi"], dtype="float32")
    for field in fields(ModelConfig):
        if field.name != "sliding_window":  # null, which says as much
            without = {name: value for name, value in raw.items() if name != field.name}
            with pytest.raises(CheckpointError, match=f"{field.name} is missing"):
                parse_config(without)


def test_a_loaded_model_is_ready_for_inference(tmp_path: Path) -> None:
    save_checkpoint(random_model(PLAIN), tmp_path)
    model = load_checkpoint(tmp_path, torch.bfloat16, CPU)
    assert not model.training
    assert {(parameter.dtype, parameter.requires_grad) for parameter in model.parameters()} == {(torch.bfloat16, False)}
    assert model.unembedding.weight is model.embedding.weight


@pytest.mark.parametrize("config", [GPT2_LIKE, PLAIN, MIXTRAL_LIKE], ids=["gpt2", "llama", "mixtral"])
def test_casting_on_saving_and_on_loading_is_one_rounding(config: ModelConfig, tmp_path: Path) -> None:
    model = random_model(config)
    save_checkpoint(model, tmp_path / "half", dtype=torch.bfloat16)
    save_checkpoint(model, tmp_path / "full")
    half, full = (load_checkpoint(tmp_path / name, torch.bfloat16, CPU) for name in ("half", "full"))
    for (name, parameter), other, source in zip(
        half.named_parameters(), full.parameters(), model.parameters(), strict=True
    ):
        assert torch.equal(parameter, other), name
        assert torch.equal(parameter, source.to(torch.bfloat16)), name
    assert json.loads((tmp_path / "half" / "config.json").read_text())["dtype"] == "bfloat16"


def test_the_safetensors_library_reads_what_is_written(tmp_path: Path) -> None:
    model = random_model(PLAIN)
    save_checkpoint(model, tmp_path)
    with safe_open(tmp_path / "model.safetensors", "pt") as file:
        assert file.metadata() == {"format": "pt"}
        query = file.get_tensor("model.layers.1.self_attn.q_proj.weight")
        up = file.get_tensor("model.layers.1.mlp.up_proj.weight")
        assert "lm_head.weight" not in file.keys()  # noqa: SIM118
    state = model.state_dict()
    assert torch.equal(query, state["layers.1.attention.qkv.weight"][:32])
    assert torch.equal(up, state["layers.1.feed_forward.up.weight"][48:])


@pytest.mark.parametrize(("ids", "stated"), [((), None), ((5,), 5), ((5, 9), [5, 9])])
def test_end_of_sequence_tokens_are_stated_in_both_files(ids: tuple[int, ...], stated: object, tmp_path: Path) -> None:
    save_checkpoint(random_model(PLAIN), tmp_path, eos_token_ids=ids)
    for name in ("config.json", "generation_config.json"):
        assert json.loads((tmp_path / name).read_text())["eos_token_id"] == stated


def test_saving_again_replaces_the_weights_and_leaves_nothing_behind(tmp_path: Path) -> None:
    for seed in (0, 1):
        save_checkpoint(random_model(PLAIN, seed), tmp_path)
    loaded = load_checkpoint(tmp_path, torch.float32, CPU)
    assert torch.equal(loaded.embedding.weight, random_model(PLAIN, 1).embedding.weight)
    assert {path.name for path in tmp_path.iterdir()} == {"config.json", "generation_config.json", "model.safetensors"}


def test_a_save_that_fails_keeps_the_old_weights(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    save_checkpoint(random_model(PLAIN, 0), tmp_path)
    crash_when_replacing("model.safetensors", monkeypatch)
    with pytest.raises(OSError, match="power failure"):
        save_checkpoint(random_model(PLAIN, 1), tmp_path)
    loaded = load_checkpoint(tmp_path, torch.float32, CPU)
    assert torch.equal(loaded.embedding.weight, random_model(PLAIN, 0).embedding.weight)


def test_a_torn_folder_has_no_weights_rather_than_wrong_ones(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    save_checkpoint(random_model(PLAIN), tmp_path)
    # Of the same shapes: only the absence of the weights can tell.
    other = EVERY["mistral 0"]
    crash_when_replacing("model.safetensors", monkeypatch)
    with pytest.raises(OSError, match="power failure"):
        save_checkpoint(random_model(other), tmp_path)
    assert read_config(tmp_path) == other
    with pytest.raises(CheckpointError, match=r"model\.safetensors: is missing"):
        load_checkpoint(tmp_path, torch.float32, CPU)


def test_a_single_file_takes_the_place_of_shards(tmp_path: Path) -> None:
    (tmp_path / "model.safetensors.index.json").write_text("{}")
    save_checkpoint(random_model(PLAIN), tmp_path)
    assert not (tmp_path / "model.safetensors.index.json").exists()


def test_saving_a_model_in_training_does_not_disturb_it(tmp_path: Path) -> None:
    model: GPT = random_model(PLAIN).train().requires_grad_(True)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    save_checkpoint(model, tmp_path, dtype=torch.bfloat16)
    assert model.training
    assert all(parameter.requires_grad and parameter.dtype == torch.float32 for parameter in model.parameters())
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())


def crash_when_replacing(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """From now on, the power fails at the moment when file `name` is to be put in place."""
    replace = Path.replace

    def failing(self: Path, target: str | os.PathLike[str]) -> Path:
        if Path(target).name == name:
            raise OSError("power failure")
        return replace(self, target)

    monkeypatch.setattr(files.Path, "replace", failing)
