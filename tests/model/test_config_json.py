import json
import subprocess
import sys
from pathlib import Path

import pytest
from model_cases import EVERY, FAMILIES, PLAIN

from model.config import ConfigError
from model.config_json import config_json, parse_config, read_config
from model.files import MAX_CONFIG_BYTES, CheckpointError

RAW = {family: config_json(configs[0], dtype="float32") for family, configs in FAMILIES.items()}
LLAMA_KIN = ("llama", "mistral", "qwen3", "mixtral")


def parse_with(family: str, **changes: object) -> object:
    return parse_config(json.loads(json.dumps({**RAW[family], **changes})))


@pytest.mark.parametrize("name", sorted(EVERY))
def test_parsing_is_the_inverse_of_writing(name: str) -> None:
    written = json.loads(json.dumps(config_json(EVERY[name], dtype="bfloat16", eos_token_ids=(1, 2))))
    assert parse_config(written) == EVERY[name]


@pytest.mark.parametrize(
    ("family", "field", "value"),
    [
        ("gpt2", "activation_function", "swish"),
        ("gpt2", "scale_attn_weights", False),
        ("gpt2", "scale_attn_by_inverse_layer_idx", True),
        ("gpt2", "reorder_and_upcast_attn", True),
        ("gpt2", "add_cross_attention", True),
        ("gpt2", "add_cross_attention", 0),
        ("llama", "sliding_window", 8),
        ("qwen3", "use_sliding_window", True),
        *((family, "hidden_act", "gelu") for family in LLAMA_KIN),
        *((family, "rope_interleaved", True) for family in LLAMA_KIN),
        *((family, "partial_rotary_factor", 0.5) for family in LLAMA_KIN),
        *((family, "layer_types", ["full_attention", "chunked_attention"]) for family in LLAMA_KIN),
        *((family, "quantization_config", {"bits": 4}) for family in ("gpt2", *LLAMA_KIN)),
        *((family, "is_encoder_decoder", True) for family in ("gpt2", *LLAMA_KIN)),
    ],
)
def test_settings_that_would_change_the_result_are_refused_by_name(family: str, field: str, value: object) -> None:
    with pytest.raises(CheckpointError, match=field):
        parse_with(family, **{field: value})


@pytest.mark.parametrize("family", LLAMA_KIN)
@pytest.mark.parametrize(
    ("changes", "match"),
    [
        ({"rope_scaling": {"rope_type": "linear", "factor": 2.0}}, r"rope_scaling\.rope_type is 'linear'"),
        ({"rope_scaling": {"type": "dynamic"}}, r"rope_scaling\.type is 'dynamic'"),
        ({"rope_scaling": {"factor": 2.0}}, r"rope_scaling\.factor"),
        ({"rope_scaling": 2}, "rope_scaling is 2; it must be an object"),
        ({"rope_parameters": {"rope_type": "yarn", "rope_theta": 1e4}}, r"rope_parameters\.rope_type is 'yarn'"),
        ({"rope_parameters": {"rope_type": "default", "rope_theta": "1e4"}}, r"rope_parameters\.rope_theta is '1e4'"),
        ({"rope_parameters": {"rope_theta": 1e4, "partial_rotary_factor": 0.5}}, "partial_rotary_factor is 0.5"),
        ({"rope_parameters": {"rope_theta": 1e4, "mystery": 1}}, r"rope_parameters\.mystery"),
        ({"rope_parameters": {"rope_theta": 3e4}, "rope_theta": 2e4}, "rope_theta is 20000.0 but"),
    ],
)
def test_rotations_other_than_plain_are_refused_by_name(family: str, changes: dict[str, object], match: str) -> None:
    with pytest.raises(CheckpointError, match=match):
        parse_with(family, **changes)


@pytest.mark.parametrize(
    ("changes", "theta"),
    [
        ({"rope_parameters": None, "rope_theta": 3e4}, 3e4),
        ({"rope_parameters": {"rope_type": "default", "rope_theta": 3e4}, "rope_theta": None}, 3e4),
        ({"rope_parameters": {"rope_theta": 30_000}, "rope_theta": 3e4}, 3e4),
        ({"rope_parameters": None, "rope_theta": None}, 1e4),
        ({"rope_parameters": None, "rope_theta": 3e4, "rope_scaling": {"rope_type": "default"}}, 3e4),
    ],
)
def test_rope_theta_is_read_in_both_spellings(changes: dict[str, object], theta: float) -> None:
    raw = {**RAW["llama"], **changes}
    assert parse_config(raw).rope_theta == theta


def test_mixtral_turns_slower_when_nothing_is_stated() -> None:
    raw = {**RAW["mixtral"], "rope_parameters": None, "rope_theta": None}
    assert parse_config(raw).rope_theta == 1e6


@pytest.mark.parametrize("family", sorted(RAW))
@pytest.mark.parametrize("wrong", ["64", 64.0, True, [64], {}])
def test_sizes_of_the_wrong_type_are_refused_by_name(family: str, wrong: object) -> None:
    names = ("n_embd", "n_layer", "n_head", "n_positions", "n_inner") if family == "gpt2" else (
        "hidden_size", "num_hidden_layers", "num_attention_heads", "num_key_value_heads", "head_dim",
        "intermediate_size", "max_position_embeddings",
    )  # fmt: skip
    for name in ("vocab_size", *names):
        with pytest.raises(CheckpointError, match=f"{name} is .*; it must be a whole number"):
            parse_with(family, **{name: wrong})


@pytest.mark.parametrize("family", sorted(RAW))
def test_other_fields_of_the_wrong_type_are_refused_by_name(family: str) -> None:
    epsilon = "layer_norm_epsilon" if family == "gpt2" else "rms_norm_eps"
    for name, wrong in (
        (epsilon, "1e-5"),
        (epsilon, True),
        ("tie_word_embeddings", "true"),
        ("tie_word_embeddings", 1),
    ):
        with pytest.raises(CheckpointError, match=f"{name} is"):
            parse_with(family, **{name: wrong})


@pytest.mark.parametrize("family", sorted(RAW))
def test_required_fields_that_are_missing_are_named(family: str) -> None:
    required = {
        "gpt2": ("vocab_size", "n_embd", "n_layer", "n_head", "n_positions"),
        "mixtral": ("num_local_experts", "num_experts_per_tok", "num_key_value_heads"),
        "mistral": ("num_key_value_heads", "sliding_window"),
        "qwen3": ("num_key_value_heads", "head_dim"),
        "llama": ("vocab_size", "hidden_size", "num_hidden_layers", "max_position_embeddings", "rms_norm_eps"),
    }
    for name in ("model_type", *required[family]):
        raw = {key: value for key, value in RAW[family].items() if key != name}
        with pytest.raises(CheckpointError, match=f"{name} is missing"):
            parse_config(raw)


@pytest.mark.parametrize(
    ("changes", "match"),
    [
        ({"num_hidden_layers": 10**6}, "num_layers is 1000000"),
        ({"vocab_size": 0}, "vocab_size is 0"),
        ({"hidden_size": -4}, "hidden_size is -4"),
        ({"num_attention_heads": 0}, "num_attention_heads"),
        ({"head_dim": 10**30}, "head_dim is 1000"),
        ({"rms_norm_eps": 0}, "norm_epsilon is 0"),
        ({"rope_theta": -1.0, "rope_parameters": None}, "rope_theta is -1"),
        ({"rms_norm_eps": 10**400}, "rms_norm_eps is 1"),
        ({"hidden_size": 33}, "hidden_size 33 is not a multiple of num_attention_heads 4"),
    ],
)
def test_sizes_beyond_the_limits_are_refused_by_name(changes: dict[str, object], match: str) -> None:
    with pytest.raises((CheckpointError, ConfigError), match=match):
        parse_with("llama", **changes)


def test_unknown_families_are_refused() -> None:
    for model_type in ("gemma3", "", 3, ["llama"]):
        with pytest.raises(CheckpointError, match=r"model_type is .*; it must be one of gpt2, llama"):
            parse_config({**RAW["llama"], "model_type": model_type})


@pytest.mark.parametrize("field", ["norm", "norm_placement", "positions", "feed_forward"])
@pytest.mark.parametrize("value", ["batchnorm", "", 1, None])
def test_our_own_choices_are_checked(field: str, value: object) -> None:
    raw = {**config_json(EVERY["alibi"], dtype="float32"), field: value}
    with pytest.raises(CheckpointError, match=field):
        parse_config(raw)


def test_our_own_layout_ignores_no_field() -> None:
    with pytest.raises(CheckpointError, match="logit_scale is not a field"):
        parse_config({**config_json(EVERY["alibi"], dtype="float32"), "logit_scale": 2.0})


def test_fields_without_influence_are_passed_over() -> None:
    harmless = {"initializer_range": 0.02, "use_cache": False, "attention_dropout": 0.1, "transformers_version": "4"}
    assert parse_with("llama", **harmless, pretraining_tp=1, rope_interleaved=False, sliding_window=None) == PLAIN


def test_absent_kv_heads_of_a_llama_mean_one_for_each_head() -> None:
    assert parse_with("llama", num_key_value_heads=None) == PLAIN


@pytest.mark.parametrize(
    "content",
    [
        *(b"", b"[]", b"3", b"{", b'{"a": }', b'{"a": NaN}', b'{"a": Infinity}', b'{"a": 1, "a": 2}', b"\xff{}"),
        b'{"a": ' + b"[" * 100_000,
        b'{"a": ' + b"9" * 10_000 + b"}",
    ],
    ids=range(11),
)
def test_a_config_that_is_no_plain_json_object_names_the_file(content: bytes, tmp_path: Path) -> None:
    (tmp_path / "config.json").write_bytes(content)
    with pytest.raises(CheckpointError, match=r"config\.json: (is not valid JSON|holds no JSON object)"):
        read_config(tmp_path)


def test_a_config_of_unreasonable_size_is_not_parsed(tmp_path: Path) -> None:
    padded = json.dumps(RAW["llama"]).encode().ljust(MAX_CONFIG_BYTES)
    (tmp_path / "config.json").write_bytes(padded)
    assert read_config(tmp_path) == PLAIN
    (tmp_path / "config.json").write_bytes(padded + b" ")
    with pytest.raises(CheckpointError, match="is longer than"):
        read_config(tmp_path)


def test_errors_name_file_and_field(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps({**RAW["llama"], "num_hidden_layers": 10**6}))
    with pytest.raises(CheckpointError, match=r"config\.json: num_layers is 1000000"):
        read_config(tmp_path)


def test_neither_configs_nor_tokenizers_import_torch() -> None:
    program = "import sys, model.config_json, model.tokenizer; sys.exit('torch' in sys.modules)"
    subprocess.run([sys.executable, "-c", program], check=True, cwd=Path(__file__).parents[2])
