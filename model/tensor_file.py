"""Safetensors files: headers read and checked before any tensor is, and written one tensor at a time.

Knows no model. Pickle files, which can run code when opened, are refused unopened.
"""

import json
import math
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO, Protocol, TypeGuard

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from model.files import CheckpointError, parse_json, read_json, replace_file

WEIGHTS_FILE = "model.safetensors"
INDEX_FILE = "model.safetensors.index.json"
# The format's own limit.
_MAX_HEADER_BYTES = 100_000_000
_LENGTH_BYTES = 8
_PICKLE_SUFFIXES = frozenset((".bin", ".pt", ".pth", ".ckpt", ".pkl"))

# The format's names of the types a weight may have.
_DTYPES = {"F64": torch.float64, "F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}
_BYTES_PER_ELEMENT = {name: dtype.itemsize for name, dtype in _DTYPES.items()} | {
    **dict.fromkeys(("BOOL", "U8", "I8", "F8_E4M3", "F8_E5M2", "F8_E8M0"), 1),
    **dict.fromkeys(("I16", "U16"), 2),
    **dict.fromkeys(("I32", "U32"), 4),
    **dict.fromkeys(("I64", "U64", "C64"), 8),
}


class _OpenFile(Protocol):
    """What is used of `safe_open`, whose stubs are untyped."""

    def get_tensor(self, name: str) -> Tensor: ...


@dataclass(frozen=True)
class StoredTensor:
    """What a header says of one tensor."""

    name: str
    path: Path
    dtype: str
    shape: tuple[int, ...]
    start: int  # bytes after the header
    end: int

    def check(self, shape: tuple[int, ...]) -> None:
        """Raises CheckpointError naming the tensor unless it has this shape and a floating-point type."""
        if self.dtype not in _DTYPES:
            raise CheckpointError(
                f"{self.path}: tensor {self.name} is of type {self.dtype}; it must be one of {', '.join(_DTYPES)}"
            )
        if self.shape != shape:
            raise CheckpointError(
                f"{self.path}: tensor {self.name} has shape {list(self.shape)}; the config asks for {list(shape)}"
            )


def stored_tensors(folder: Path) -> dict[str, StoredTensor]:
    """Every tensor of a checkpoint folder by name, from its single file or its shards. Reads headers only.

    Raises CheckpointError when there is none, or a header contradicts itself, its file or the index.
    """
    single = folder / WEIGHTS_FILE
    if single.exists():
        return read_header(single)
    index = folder / INDEX_FILE
    if index.exists():
        return _read_shards(index)
    pickles = sorted(path.name for path in folder.glob("*") if path.suffix in _PICKLE_SUFFIXES)
    if pickles:
        raise CheckpointError(
            f"{folder / pickles[0]}: is a pickle file, which can run code when opened; convert it to {WEIGHTS_FILE}"
        )
    raise CheckpointError(f"{single}: is missing")


def read_header(path: Path) -> dict[str, StoredTensor]:
    """The tensors of one file, checked to lie in it one after another without gaps."""
    header, data_bytes = _read_header_json(path)
    header.pop("__metadata__", None)
    tensors = [_entry(path, name, fields) for name, fields in header.items()]
    tensors.sort(key=lambda tensor: (tensor.start, tensor.end))
    reached = 0
    for tensor in tensors:
        if tensor.end > data_bytes:
            raise CheckpointError(
                f"{path}: tensor {tensor.name} ends at byte {tensor.end} of {data_bytes}; is the file truncated?"
            )
        if tensor.start != reached:
            raise CheckpointError(f"{path}: tensor {tensor.name} starts at byte {tensor.start}, not at {reached}")
        reached = tensor.end
    if reached != data_bytes:
        raise CheckpointError(f"{path}: {data_bytes - reached} bytes after the last tensor belong to none")
    return {tensor.name: tensor for tensor in tensors}


class TensorReader:
    """Reads tensors, keeping each file open once. Obtained from `open_tensors`."""

    def __init__(self, stack: ExitStack) -> None:
        self._stack = stack
        self._files: dict[Path, _OpenFile] = {}

    def read(self, stored: StoredTensor) -> Tensor:
        """The tensor, on the CPU and of its stored type."""
        try:
            if stored.path not in self._files:
                self._files[stored.path] = self._stack.enter_context(safe_open(stored.path, framework="pt"))
            return self._files[stored.path].get_tensor(stored.name)
        except (SafetensorError, OSError) as error:
            raise CheckpointError(f"{stored.path}: tensor {stored.name} cannot be read: {error}") from error


@contextmanager
def open_tensors() -> Iterator[TensorReader]:
    """A reader whose files are closed at the end."""
    with ExitStack() as stack:
        yield TensorReader(stack)


def write_tensors(path: Path, tensors: Mapping[str, Tensor], dtype: torch.dtype) -> None:
    """Write `tensors`, cast to `dtype`, atomically. Only one of them is copied at a time."""
    replace_file(path, lambda file: _write(file, tensors, dtype))


def _write(file: BinaryIO, tensors: Mapping[str, Tensor], dtype: torch.dtype) -> None:
    names = {value: name for name, value in _DTYPES.items()}
    header: dict[str, object] = {"__metadata__": {"format": "pt"}}  # transformers insists on the format
    reached = 0
    for name, tensor in tensors.items():
        end = reached + tensor.numel() * dtype.itemsize
        header[name] = {"dtype": names[dtype], "shape": list(tensor.shape), "data_offsets": [reached, end]}
        reached = end
    encoded = json.dumps(header).encode()
    encoded += b" " * (-len(encoded) % _LENGTH_BYTES)  # so that the data begin aligned
    file.write(len(encoded).to_bytes(_LENGTH_BYTES, "little"))
    file.write(encoded)
    for tensor in tensors.values():
        plain = tensor.detach().to("cpu", dtype).contiguous()
        file.write(plain.view(torch.uint8).numpy().data)


def _read_shards(index: Path) -> dict[str, StoredTensor]:
    listed = read_json(index, _MAX_HEADER_BYTES).get("weight_map")
    if not isinstance(listed, dict):
        raise CheckpointError(f"{index}: weight_map is missing; it must be an object")
    for name, file in listed.items():
        # A plain name: an index must not point outside its folder.
        if not isinstance(file, str) or Path(file).name != file or Path(file).suffix != ".safetensors":
            raise CheckpointError(f"{index}: tensor {name} is said to be in {file!r}, which is no safetensors file")
    tensors: dict[str, StoredTensor] = {}
    for file in sorted(set(listed.values())):
        for name, tensor in read_header(index.parent / file).items():
            if listed.get(name) != file:
                raise CheckpointError(f"{tensor.path}: tensor {name} is not where {index.name} says")
            tensors[name] = tensor
    for name, file in listed.items():
        if name not in tensors:
            raise CheckpointError(f"{index}: tensor {name} is not in {file}")
    return tensors


def _read_header_json(path: Path) -> tuple[dict[str, object], int]:
    """The header of a file and the number of bytes after it."""
    try:
        size = path.stat().st_size
        with path.open("rb") as file:
            length = int.from_bytes(file.read(_LENGTH_BYTES), "little")
            available = min(size - _LENGTH_BYTES, _MAX_HEADER_BYTES)
            if length > available:
                raise CheckpointError(f"{path}: claims a header of {length} bytes where at most {available} can be")
            return parse_json(file.read(length), f"{path}: header"), size - _LENGTH_BYTES - length
    except OSError as error:
        raise CheckpointError(f"{path}: cannot be read: {error.strerror}") from error


def _entry(path: Path, name: str, fields: object) -> StoredTensor:
    if not isinstance(fields, dict):
        raise CheckpointError(f"{path}: header of tensor {name} is no object")
    dtype, shape, offsets = (fields.get(key) for key in ("dtype", "shape", "data_offsets"))
    if not isinstance(dtype, str) or dtype not in _BYTES_PER_ELEMENT:
        raise CheckpointError(f"{path}: tensor {name} is of unknown type {dtype!r}")
    if not _are_sizes(shape):
        raise CheckpointError(f"{path}: tensor {name} has no valid shape")
    if not _are_sizes(offsets) or len(offsets) != 2:
        raise CheckpointError(f"{path}: tensor {name} has no valid data_offsets")
    needed = math.prod(shape) * _BYTES_PER_ELEMENT[dtype]
    if offsets[1] - offsets[0] != needed:
        raise CheckpointError(
            f"{path}: tensor {name} has {offsets[1] - offsets[0]} bytes; its type and shape need {needed}"
        )
    return StoredTensor(name, path, dtype, tuple(shape), offsets[0], offsets[1])


def _are_sizes(value: object) -> TypeGuard[list[int]]:
    return isinstance(value, list) and all(type(item) is int and item >= 0 for item in value)
