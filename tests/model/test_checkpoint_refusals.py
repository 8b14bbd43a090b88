"""Folders that must not be loaded. Every message names the file and the tensor or field at fault."""

import json
import pickle
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from model_cases import GPT2_LIKE, MIXTRAL_LIKE, PLAIN, random_model
from safetensors.torch import load_file, save_file
from torch import Tensor

from model import checkpoint
from model.checkpoint import CheckpointError, load_checkpoint, save_checkpoint
from model.config import ModelConfig
from model.gpt import GPT
from model.layouts import Part

CPU = torch.device("cpu")
WEIGHTS = "model.safetensors"
UP = "model.layers.1.mlp.up_proj.weight"


def refused(folder: Path, match: str) -> None:
    with pytest.raises(CheckpointError, match=match):
        load_checkpoint(folder, torch.float32, CPU)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    save_checkpoint(random_model(PLAIN), tmp_path)
    load_checkpoint(tmp_path, torch.float32, CPU)
    return tmp_path


def edit_tensors(folder: Path, edit: Callable[[dict[str, Tensor]], object]) -> None:
    tensors = load_file(folder / WEIGHTS)
    edit(tensors)
    save_file(tensors, folder / WEIGHTS, {"format": "pt"})


def edit_header(folder: Path, edit: Callable[[dict[str, Any]], object]) -> None:
    data = (folder / WEIGHTS).read_bytes()
    length = int.from_bytes(data[:8], "little")
    header = json.loads(data[8 : 8 + length])
    edit(header)
    encoded = json.dumps(header).encode()
    (folder / WEIGHTS).write_bytes(len(encoded).to_bytes(8, "little") + encoded + data[8 + length :])


def edit_config(folder: Path, **changes: object) -> None:
    raw = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**raw, **changes}))


class Trap:
    """Unpickling this would leave a file behind."""

    def __init__(self, witness: Path) -> None:
        self.witness = witness

    def __reduce__(self) -> tuple[object, ...]:
        return (Path.touch, (self.witness,))


@pytest.mark.parametrize("name", ["pytorch_model.bin", "model.pt", "consolidated.00.pth", "last.ckpt"])
def test_pickle_files_are_refused_unopened(folder: Path, name: str) -> None:
    (folder / WEIGHTS).unlink()
    witness = folder / "witness"
    (folder / name).write_bytes(pickle.dumps(Trap(witness)))
    refused(folder, f"{name}: is a pickle file")
    assert not witness.exists()


def test_a_pickle_in_disguise_is_no_safetensors_file(folder: Path) -> None:
    (folder / WEIGHTS).write_bytes(pickle.dumps({"a": 1}) + b" " * 100)
    refused(folder, rf"{WEIGHTS}: claims a header of \d+ bytes")


def test_a_folder_without_weights_is_refused(folder: Path) -> None:
    (folder / WEIGHTS).unlink()
    refused(folder, f"{WEIGHTS}: is missing")


def test_a_folder_without_a_config_is_refused(folder: Path) -> None:
    (folder / "config.json").unlink()
    refused(folder, r"config\.json: cannot be read: No such file")


@pytest.mark.parametrize("size", [0, 4, 8, 100])
def test_a_file_cut_within_its_header_is_refused(folder: Path, size: int) -> None:
    data = (folder / WEIGHTS).read_bytes()
    (folder / WEIGHTS).write_bytes(data[:size])
    refused(folder, WEIGHTS)


def test_a_file_cut_within_its_data_names_the_tensor_lost(folder: Path) -> None:
    data = (folder / WEIGHTS).read_bytes()
    (folder / WEIGHTS).write_bytes(data[:-1])
    refused(
        folder,
        rf"{WEIGHTS}: tensor model\.layers\.1\.mlp\.down_proj\.weight ends at byte \d+ of \d+; is the file truncated",
    )


def test_bytes_after_the_last_tensor_are_refused(folder: Path) -> None:
    with (folder / WEIGHTS).open("ab") as file:
        file.write(b"abc")
    refused(folder, "3 bytes after the last tensor")


@pytest.mark.parametrize("length", [10**6, 2**40, 2**64 - 1])
def test_a_header_length_that_lies_is_refused_before_it_is_believed(folder: Path, length: int) -> None:
    data = (folder / WEIGHTS).read_bytes()
    (folder / WEIGHTS).write_bytes(length.to_bytes(8, "little") + data[8:])
    refused(folder, f"claims a header of {length} bytes")


@pytest.mark.parametrize(
    "header", [b"[]", b"{", b"\xff\xff", b'{"a": NaN}', b'{"a": {}, "a": {}}', b"[" * 100_000], ids=range(6)
)
def test_a_header_that_is_no_json_object_is_refused(folder: Path, header: bytes) -> None:
    (folder / WEIGHTS).write_bytes(len(header).to_bytes(8, "little") + header)
    refused(folder, f"{WEIGHTS}: header")


@pytest.mark.parametrize(
    ("field", "value", "match"),
    [
        ("dtype", "F31", "unknown type 'F31'"),
        ("dtype", ["F32"], "unknown type"),
        ("shape", [-1, 32], "no valid shape"),
        ("shape", [48, 32.0], "no valid shape"),
        ("shape", [True, 32], "no valid shape"),
        ("shape", "48x32", "no valid shape"),
        ("shape", [2**62, 2**62], "need"),
        ("data_offsets", [0], "no valid data_offsets"),
        ("data_offsets", [-8, 0], "no valid data_offsets"),
        ("data_offsets", None, "no valid data_offsets"),
        ("data_offsets", [8, 0], "has -8 bytes"),
        ("data_offsets", [0, 48 * 32 * 4 + 4], "need 6144"),
        ("data_offsets", [2**60, 2**60 + 48 * 32 * 4], r"is the file truncated|starts at byte"),
        ("data_offsets", [4, 4 + 48 * 32 * 4], "starts at byte"),
    ],
)
def test_a_header_that_contradicts_itself_names_the_tensor(folder: Path, field: str, value: object, match: str) -> None:
    edit_header(folder, lambda header: header[UP].update({field: value}))
    refused(folder, f"{WEIGHTS}: tensor .*({match})")


def test_tensors_that_share_bytes_are_refused(folder: Path) -> None:
    other = "model.layers.0.mlp.up_proj.weight"
    edit_header(folder, lambda header: header[UP].update(data_offsets=header[other]["data_offsets"]))
    refused(folder, "tensor .* starts at byte")


def test_a_tensor_entry_that_is_no_object_is_named(folder: Path) -> None:
    edit_header(folder, lambda header: header.update({UP: 3}))
    refused(folder, f"header of tensor {UP} is no object")


def test_a_missing_tensor_is_named(folder: Path) -> None:
    edit_tensors(folder, lambda tensors: tensors.pop(UP))
    refused(folder, f"tensor {UP} is missing")


def test_an_extra_tensor_is_named(folder: Path) -> None:
    edit_tensors(folder, lambda tensors: tensors.update({"model.layers.2.mlp.up_proj.weight": torch.zeros(48, 32)}))
    refused(folder, r"tensor model\.layers\.2\.mlp\.up_proj\.weight is not part of a llama model")


def test_a_bias_the_config_does_not_mention_is_an_extra_tensor(folder: Path) -> None:
    edit_tensors(folder, lambda tensors: tensors.update({"model.layers.0.self_attn.q_proj.bias": torch.zeros(32)}))
    refused(folder, r"q_proj\.bias is not part")


@pytest.mark.parametrize("shape", [(32, 48), (48, 31), (48 * 32,), (1, 48, 32)])
def test_a_wrong_shape_names_tensor_and_shapes(folder: Path, shape: tuple[int, ...]) -> None:
    edit_tensors(folder, lambda tensors: tensors.update({UP: torch.zeros(shape)}))
    refused(folder, rf"tensor {UP} has shape \[{', '.join(map(str, shape))}\]; the config asks for \[48, 32\]")


def test_a_transposed_gpt2_weight_is_a_wrong_shape(tmp_path: Path) -> None:
    save_checkpoint(random_model(GPT2_LIKE), tmp_path)
    name = "transformer.h.0.mlp.c_fc.weight"
    edit_tensors(tmp_path, lambda tensors: tensors.update({name: tensors[name].T.contiguous()}))
    refused(tmp_path, rf"tensor {name} has shape \[48, 32\]; the config asks for \[32, 48\]")


@pytest.mark.parametrize("dtype", [torch.int8, torch.int64, torch.uint8, torch.bool, torch.float8_e4m3fn])
def test_weights_that_are_not_floating_point_are_named(folder: Path, dtype: torch.dtype) -> None:
    edit_tensors(folder, lambda tensors: tensors.update({UP: torch.zeros(48, 32).to(dtype)}))
    refused(folder, rf"tensor {UP} is of type \w+; it must be one of F64, F32, F16, BF16")


def test_an_expert_that_is_missing_is_named(tmp_path: Path) -> None:
    save_checkpoint(random_model(MIXTRAL_LIKE), tmp_path)
    name = "model.layers.1.block_sparse_moe.experts.3.w2.weight"
    edit_tensors(tmp_path, lambda tensors: tensors.pop(name))
    refused(tmp_path, f"tensor {name} is missing")


def test_a_stored_duplicate_of_a_tied_embedding_is_accepted(folder: Path) -> None:
    edit_tensors(
        folder, lambda tensors: tensors.update({"lm_head.weight": tensors["model.embed_tokens.weight"].clone()})
    )
    model = load_checkpoint(folder, torch.float32, CPU)
    assert model.unembedding.weight is model.embedding.weight


def test_a_tied_embedding_with_a_different_duplicate_is_refused(folder: Path) -> None:
    edit_tensors(folder, lambda tensors: tensors.update({"lm_head.weight": tensors["model.embed_tokens.weight"] + 1}))
    refused(folder, r"tensor lm_head\.weight differs from model\.embed_tokens\.weight, yet they are tied")


def test_an_untied_model_needs_its_unembedding(folder: Path) -> None:
    edit_config(folder, tie_word_embeddings=False)
    refused(folder, r"tensor lm_head\.weight is missing")


def test_a_model_that_needs_more_memory_than_there_is_allocates_nothing(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    parameters = sum(parameter.numel() for parameter in random_model(PLAIN).parameters())
    table = PLAIN.context_length * PLAIN.head_dim * 4

    def load(dtype: torch.dtype, available: int) -> GPT:
        return load_checkpoint(folder, dtype, CPU, available=lambda device: available)

    assert load(torch.float32, 4 * parameters + table).config == PLAIN
    assert load(torch.bfloat16, 2 * parameters + table).config == PLAIN
    allocate = torch.empty

    def watched(*size: object, **options: object) -> object:
        assert options.get("device") != CPU, "memory was allocated"
        return allocate(*size, **options)

    monkeypatch.setattr(torch, "empty", watched)
    with pytest.raises(CheckpointError, match=r"the model needs .* GiB of memory; .* GiB are available"):
        load(torch.float32, 4 * parameters + table - 1)
    with pytest.raises(AssertionError, match="memory was allocated"):
        load(torch.float32, 4 * parameters + table)


def test_an_enormous_config_is_refused_for_memory_without_a_table_of_positions(folder: Path) -> None:
    edit_config(folder, max_position_embeddings=4_194_304)
    with pytest.raises(CheckpointError, match="memory"):
        load_checkpoint(folder, torch.float32, CPU, available=lambda device: 100_000_000)


@pytest.mark.parametrize(
    ("listed", "match"),
    [
        ({}, "weight_map is missing"),
        ({"weight_map": []}, "weight_map is missing"),
        ({"weight_map": {"a": "../outside.safetensors"}}, "tensor a is said to be in '../outside.safetensors'"),
        ({"weight_map": {"a": "model.bin"}}, "tensor a is said to be in 'model.bin'"),
        ({"weight_map": {"a": 3}}, "tensor a is said to be in 3"),
        ({"weight_map": {"a": "absent.safetensors"}}, r"absent\.safetensors: cannot be read"),
        ({"weight_map": {"a": "shard.safetensors", "b": "shard.safetensors"}}, "tensor b is not in shard"),
        ({"weight_map": {"b": "shard.safetensors"}}, "tensor a is not where"),
    ],
)
def test_an_index_that_does_not_fit_its_shards_is_refused(folder: Path, listed: object, match: str) -> None:
    (folder / WEIGHTS).unlink()
    save_file({"a": torch.zeros(2)}, folder / "shard.safetensors")
    (folder / "model.safetensors.index.json").write_text(json.dumps(listed))
    refused(folder, match)


def test_a_model_missing_a_table_entry_is_never_half_filled(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    # The last line of defence, should a parameter be added to the model and not to the tables.
    def without_norm(*arguments: Any) -> Iterator[Part]:
        return (part for part in matching(*arguments) if part.theirs != "model.norm.weight")

    matching = checkpoint._matching_parts
    monkeypatch.setattr(checkpoint, "_matching_parts", without_norm)
    with pytest.raises(AssertionError, match="does not cover"):
        load_checkpoint(folder, torch.float32, CPU)


def test_config_limits_hold_before_anything_is_allocated(folder: Path) -> None:
    edit_config(folder, vocab_size=10**9)
    refused(folder, r"config\.json: vocab_size is 1000000000")


def test_shapes_of_every_family_are_checked(tmp_path: Path) -> None:
    configs: tuple[ModelConfig, ...] = (GPT2_LIKE, PLAIN, MIXTRAL_LIKE, replace(PLAIN, positions="alibi"))
    for index, config in enumerate(configs):
        folder = tmp_path / str(index)
        save_checkpoint(random_model(config), folder)
        for name, tensor in load_file(folder / WEIGHTS).items():
            wrong = torch.zeros([*tensor.shape[:-1], tensor.shape[-1] + 1])
            edit_tensors(folder, lambda tensors, name=name, wrong=wrong: tensors.update({name: wrong}))
            refused(folder, f"tensor {name} has shape")
            edit_tensors(folder, lambda tensors, name=name, right=tensor: tensors.update({name: right}))
