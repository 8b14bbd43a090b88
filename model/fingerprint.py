"""A short name for all that a checkpoint's answers depend on: its files, and the library and processor that compute."""

import hashlib
from collections.abc import Iterator
from pathlib import Path

import torch

from model.config_json import CONFIG_FILE
from model.files import CheckpointError
from model.tensor_file import stored_tensors
from model.tokenizer import SETTINGS_FILE, TEMPLATE_FILE, TOKENIZER_FILE

# Small files that decide, like the weights, what a request is answered; not all of them need be there.
_COMPANIONS = (CONFIG_FILE, "generation_config.json", TOKENIZER_FILE, SETTINGS_FILE, TEMPLATE_FILE)
# Files up to this size are hashed whole, some hundredths of a second; of larger ones evenly spaced samples, as much in
# all. Two trainings differ in every weight, so samples tell them apart; a single edited weight they may miss.
_MAX_HASHED_BYTES = 64 * 2**20
_SAMPLE_BYTES = 2**20


def checkpoint_fingerprint(folder: Path) -> str:
    """16 hexadecimal digits: equal for equal files, wherever they lie, under the same torch and kind of processor.

    Covers the tensors' names, types and shapes, the sizes and contents (see above) of the weights, configuration and
    tokenizer. Raises CheckpointError for a folder whose files cannot be read.
    """
    digest = hashlib.sha256()
    for part in _parts(folder):
        digest.update(len(part).to_bytes(8, "little") + part)
    return digest.hexdigest()[:16]


def _parts(folder: Path) -> Iterator[bytes]:
    yield f"torch {torch.__version__} {torch.backends.cpu.get_cpu_capability()}".encode()
    tensors = sorted(stored_tensors(folder).values(), key=lambda tensor: tensor.name)
    for tensor in tensors:
        yield repr((tensor.name, tensor.path.name, tensor.dtype, tensor.shape, tensor.start)).encode()
    companions = [folder / name for name in _COMPANIONS if (folder / name).exists()]
    try:
        for path in [*companions, *sorted({tensor.path for tensor in tensors})]:
            yield path.name.encode()
            yield path.stat().st_size.to_bytes(8, "little")
            yield from _samples(path)
    except OSError as error:
        raise CheckpointError(f"{error.filename}: cannot be read: {error.strerror}") from error


def _samples(path: Path) -> Iterator[bytes]:
    """The contents in pieces: all of them, or the first, the last and evenly spaced ones between."""
    size = path.stat().st_size
    count = -(-min(size, _MAX_HASHED_BYTES) // _SAMPLE_BYTES)
    stride = _SAMPLE_BYTES if size <= _MAX_HASHED_BYTES else (size - _SAMPLE_BYTES) // (count - 1)
    with path.open("rb") as file:
        for index in range(count):
            file.seek(index * stride)
            yield file.read(_SAMPLE_BYTES)
