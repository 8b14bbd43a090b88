"""Fingerprints: the same for the same checkpoint anywhere, another for whatever changes an answer."""

import shutil
from pathlib import Path

import pytest
import torch
from model_cases import PLAIN, random_model

from model import fingerprint
from model.checkpoint import save_checkpoint
from model.files import CheckpointError
from model.fingerprint import checkpoint_fingerprint
from model.tokenizer import train_bpe_tokenizer


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    save_checkpoint(random_model(PLAIN), tmp_path / "a")
    train_bpe_tokenizer(["to be or not to be"], 300).save(tmp_path / "a")
    return tmp_path / "a"


def change_byte(path: Path, position: int) -> None:
    content = bytearray(path.read_bytes())
    content[position] ^= 1
    path.write_bytes(content)


def test_a_copy_has_the_same_fingerprint_whatever_else_lies_beside_it(folder: Path) -> None:
    copy = folder.parent / "b"
    shutil.copytree(folder, copy)
    (copy / "log.jsonl").write_text("{}")
    assert checkpoint_fingerprint(folder) == checkpoint_fingerprint(copy)
    assert len(checkpoint_fingerprint(folder)) == 16


@pytest.mark.parametrize("file", ["config.json", "generation_config.json", "tokenizer.json", "tokenizer_config.json"])
def test_every_file_that_decides_an_answer_decides_the_fingerprint(folder: Path, file: str) -> None:
    before = checkpoint_fingerprint(folder)
    (folder / file).write_bytes((folder / file).read_bytes() + b" ")
    assert checkpoint_fingerprint(folder) != before


def test_one_weight_makes_a_difference(folder: Path) -> None:
    before = checkpoint_fingerprint(folder)
    change_byte(folder / "model.safetensors", -1)
    assert checkpoint_fingerprint(folder) != before


def test_a_chat_template_or_another_torch_makes_a_difference(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    prints = [checkpoint_fingerprint(folder)]
    (folder / "chat_template.jinja").write_text("{{ messages }}")
    prints.append(checkpoint_fingerprint(folder))
    monkeypatch.setattr(torch, "__version__", "9.9")
    prints.append(checkpoint_fingerprint(folder))
    assert len(set(prints)) == 3


def test_of_a_large_file_both_ends_and_samples_between_are_hashed(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    weights = folder / "model.safetensors"
    monkeypatch.setattr(fingerprint, "_SAMPLE_BYTES", 64)
    monkeypatch.setattr(fingerprint, "_MAX_HASHED_BYTES", weights.stat().st_size // 4)
    prints = {checkpoint_fingerprint(folder)}
    samples = list(fingerprint._samples(weights))
    assert sum(map(len, samples)) <= weights.stat().st_size // 4 + 64
    content = weights.read_bytes()
    assert samples[0] == content[:64]
    assert content.rfind(samples[-1]) > len(content) - 64 - len(samples)  # a remainder of the division at most
    change_byte(weights, content.rfind(samples[-1]) + 63)
    prints.add(checkpoint_fingerprint(folder))
    assert len(prints) == 2


def test_weights_that_are_missing_are_named(folder: Path) -> None:
    (folder / "model.safetensors").unlink()
    with pytest.raises(CheckpointError, match=r"model\.safetensors: is missing"):
        checkpoint_fingerprint(folder)
