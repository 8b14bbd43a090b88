"""Checkpoint folders: a model to and from `config.json` and `model.safetensors`, in Hugging Face's layouts or our own.

Everything is checked against headers before memory is allocated. Knows no tokenizer.
"""

import re
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import torch
from torch import Tensor, nn

from model.config import ModelConfig
from model.config_json import CONFIG_FILE, best_layout, config_json, read_layout, token_id_field
from model.files import CheckpointError, json_bytes, replace_bytes
from model.gpt import GPT
from model.layouts import EMBEDDING, UNEMBEDDING, Layout, Part, Shapes, Table, unembedding_name
from model.memory import available_bytes
from model.tensor_file import (
    INDEX_FILE,
    WEIGHTS_FILE,
    StoredTensor,
    TensorReader,
    open_tensors,
    stored_tensors,
    write_tensors,
)

__all__ = ["CheckpointError", "load_checkpoint", "save_checkpoint"]

GENERATION_FILE = "generation_config.json"

# Bytes that can be allocated on a device; None where nobody knows.
AvailableBytes = Callable[[torch.device], int | None]


def load_checkpoint(
    folder: Path, dtype: torch.dtype, device: torch.device, *, available: AvailableBytes = available_bytes
) -> GPT:
    """The model in `folder`, ready for inference: evaluation mode, no gradients, parameters of `dtype` on `device`.

    Raises CheckpointError naming the file and the field or tensor at fault; nothing large has been allocated then.
    """
    layout, config = read_layout(folder)
    stored = stored_tensors(folder)
    with torch.device("meta"):
        model = GPT(config)
    shapes = {name: tuple(parameter.shape) for name, parameter in model.named_parameters()}
    parts = list(_matching_parts(folder, layout, config, shapes, stored))
    _check_memory(folder, _bytes_needed(config, shapes, dtype), available(device))
    parameters = {name: torch.empty(shape, dtype=dtype, device=device) for name, shape in shapes.items()}
    with open_tensors() as reader:
        _check_tied(reader, layout, config, shapes, stored)
        _fill(parameters, parts, stored, reader)
    return _assemble(model, parameters)


def save_checkpoint(
    model: GPT, folder: Path, *, dtype: torch.dtype | None = None, eos_token_ids: Sequence[int] = ()
) -> None:
    """Write `model` to `folder` (made if need be), in the first layout that can represent it.

    `dtype` is that of the written tensors, the model's own by default. A folder that holds a checkpoint of the same
    config.json goes from old to new weights in one step; with another config.json, the old weights go first, so that a
    crash leaves a folder without weights, never one with the wrong weights.
    """
    folder.mkdir(parents=True, exist_ok=True)
    dtype = dtype or model.embedding.weight.dtype
    layout = best_layout(model.config)
    config = json_bytes(config_json(model.config, dtype=str(dtype).removeprefix("torch."), eos_token_ids=eos_token_ids))
    if not _holds(folder / CONFIG_FILE, config):
        (folder / WEIGHTS_FILE).unlink(missing_ok=True)
        replace_bytes(folder / CONFIG_FILE, config)
    replace_bytes(folder / GENERATION_FILE, json_bytes({"eos_token_id": token_id_field(eos_token_ids)}))
    write_tensors(folder / WEIGHTS_FILE, _regions(model, layout), dtype)
    # Shards of an earlier checkpoint: readers take the single file, people would wonder.
    (folder / INDEX_FILE).unlink(missing_ok=True)


def _matching_parts(
    folder: Path, layout: Layout, config: ModelConfig, shapes: Shapes, stored: dict[str, StoredTensor]
) -> Iterator[Part]:
    """The parts of the layout's table that the stored tensors follow; every stored tensor must be one of them."""
    table = _naming(layout, config, shapes, stored)
    used = set()
    for part in table(config, shapes):
        if part.theirs not in stored:
            raise CheckpointError(f"{folder}: tensor {part.theirs} is missing")
        stored[part.theirs].check(part.shape(shapes))
        used.add(part.theirs)
        yield part
    ignored = re.compile(layout.ignored)
    duplicate = _tied_duplicate(table, config, shapes)
    for name, tensor in stored.items():
        if name not in used and name != duplicate and not ignored.fullmatch(name):
            raise CheckpointError(f"{tensor.path}: tensor {name} is not part of a {layout.model_type} model like this")


def _naming(layout: Layout, config: ModelConfig, shapes: Shapes, stored: dict[str, StoredTensor]) -> Table:
    """The first of the layout's tables whose names are all stored, or the main one to complain about."""
    for table in layout.tables:
        if all(part.theirs in stored for part in table(config, shapes)):
            return table
    return layout.tables[0]


def _tied_duplicate(table: Table, config: ModelConfig, shapes: Shapes) -> str | None:
    return unembedding_name(table, config, shapes) if config.tie_embeddings else None


def _check_tied(
    reader: TensorReader, layout: Layout, config: ModelConfig, shapes: Shapes, stored: dict[str, StoredTensor]
) -> None:
    """Some programs store a tied unembedding as well: it must be the embedding, or the file means something else."""
    table = _naming(layout, config, shapes, stored)
    duplicate = _tied_duplicate(table, config, shapes)
    if duplicate is None or duplicate not in stored:
        return
    embedding = next(part.theirs for part in table(config, shapes) if part.ours == EMBEDDING)
    stored[duplicate].check(shapes[EMBEDDING])
    if not torch.equal(reader.read(stored[duplicate]), reader.read(stored[embedding])):
        raise CheckpointError(
            f"{stored[duplicate].path}: tensor {duplicate} differs from {embedding}, yet they are tied"
        )


def _fill(
    parameters: dict[str, Tensor], parts: Sequence[Part], stored: dict[str, StoredTensor], reader: TensorReader
) -> None:
    """Copy every part to its place, casting on the way."""
    missing = {name: parameter.numel() for name, parameter in parameters.items()}
    for part in parts:
        source = reader.read(stored[part.theirs])
        parameters[part.ours][part.region].copy_(source.T if part.transposed else source)
        missing[part.ours] -= source.numel()
    # Unfilled memory would be served as weights.
    assert not any(missing.values()), f"the layout's table does not cover {missing}"


def _assemble(model: GPT, parameters: dict[str, Tensor]) -> GPT:
    state = {name: nn.Parameter(tensor, requires_grad=False) for name, tensor in parameters.items()}
    if model.config.tie_embeddings:
        state[UNEMBEDDING] = state[EMBEDDING]
    model.load_state_dict(state, assign=True)
    return model.eval().requires_grad_(False)


def _regions(model: GPT, layout: Layout) -> dict[str, Tensor]:
    """The tensors to write by their names in the layout: views of the model's parameters."""
    parameters = {name: parameter.detach() for name, parameter in model.named_parameters()}
    shapes = {name: tuple(parameter.shape) for name, parameter in parameters.items()}
    missing = {name: parameter.numel() for name, parameter in parameters.items()}
    regions = {}
    for part in layout.tables[0](model.config, shapes):
        region = parameters[part.ours][part.region]
        regions[part.theirs] = region.T if part.transposed else region
        missing[part.ours] -= region.numel()
    assert not any(missing.values()), f"the layout's table does not cover {missing}"
    return regions


def _bytes_needed(config: ModelConfig, shapes: Shapes, dtype: torch.dtype) -> int:
    weights = sum(torch.Size(shape).numel() for shape in shapes.values()) * dtype.itemsize
    widths = {"rotary": config.head_dim, "sinusoidal": config.hidden_size}
    table = config.context_length * widths.get(config.positions, 0) * torch.float32.itemsize
    return weights + table


def _check_memory(folder: Path, needed: int, available: int | None) -> None:
    if available is not None and needed > available:
        raise CheckpointError(
            f"{folder}: the model needs {needed / 2**30:.2f} GiB of memory; {available / 2**30:.2f} GiB are available"
        )


def _holds(path: Path, data: bytes) -> bool:
    return path.exists() and path.read_bytes() == data
