"""A draft model from its folder: beside a target that it fits, and refused beside one that it does not."""

import weakref
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from drafting_cases import prompt, speculating
from engine_driver import decode
from tiny_models import GQA, tiny_model

from model.checkpoint import save_checkpoint
from model.config import ModelConfig
from model.gpt import GPT
from model.tokenizer import train_char_tokenizer
from server.engine import load
from server.engine.backend import Backend, Backends
from server.engine.config import Dtype, EngineConfig
from server.engine.load import load_engine
from server.engine.params import SamplingParams
from server.engine.types import SequenceRequest

TEXT = "abcdefghijklmnopqrstuvwxyz"
CONFIG = EngineConfig(device="cpu", dtype="float32", num_blocks=40, max_running=4, max_step_tokens=64)


def write(folder: Path, text: str, config: ModelConfig, vocab_size: int | None = None) -> Path:
    tokenizer = train_char_tokenizer(text)
    config = replace(config, vocab_size=vocab_size or tokenizer.vocab_size)
    folder.mkdir()
    save_checkpoint(tiny_model(config), folder)
    tokenizer.save(folder)
    return folder


def test_a_fitting_draft_drafts_and_changes_nothing(tmp_path: Path) -> None:
    target = write(tmp_path / "target", TEXT, GQA)
    small = write(tmp_path / "small", TEXT, replace(GQA, num_layers=1, hidden_size=32))
    requests = [
        SequenceRequest(id_, prompt(20, id_), SamplingParams(max_tokens=12, temperature=0.0)) for id_ in range(3)
    ]
    plain = load_engine(target, CONFIG)
    with_draft = load_engine(target, CONFIG, small)
    assert (plain.info.has_draft_model, with_draft.info.has_draft_model) == (False, True)
    run = decode(with_draft, speculating(requests, "draft"))
    assert run.results == decode(plain, requests).results
    assert sum(stats.num_draft_tokens for stats in run.stats) > 0


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_a_cache_that_is_like_the_weights_is_called_by_their_format(tmp_path: Path, dtype: Dtype) -> None:
    info = load_engine(write(tmp_path / "target", TEXT, GQA), replace(CONFIG, dtype=dtype)).info
    assert (info.dtype, info.kv_cache) == (dtype, dtype)


def test_a_draft_with_another_vocabulary_is_refused_in_one_line(tmp_path: Path) -> None:
    target = write(tmp_path / "target", TEXT, GQA)
    larger = write(tmp_path / "larger", TEXT + "0123456789", GQA)
    message = r"draft \S+larger has a vocabulary of \d+ tokens; it must be the model's \d+$"
    with pytest.raises(ValueError, match=message):
        load_engine(target, CONFIG, larger)


def test_a_draft_of_the_same_size_whose_tokens_mean_something_else_is_refused(tmp_path: Path) -> None:
    target = write(tmp_path / "target", TEXT, GQA)
    upper = write(tmp_path / "upper", TEXT.upper(), GQA)
    message = r"draft \S+upper has another vocabulary: token \d+ is b'A', for the model b'a'$"
    with pytest.raises(ValueError, match=message):
        load_engine(target, CONFIG, upper)


def test_torchs_weights_are_gone_before_the_cache_is_sized(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    target = write(tmp_path / "target", TEXT, GQA)
    small = write(tmp_path / "small", TEXT, replace(GQA, num_layers=1))
    packed: list[weakref.ref[GPT]] = []
    left: list[GPT | None] = []

    def remember(self: Backends, model: GPT, draft: GPT | None) -> tuple[Backend, Backend | None]:
        packed.extend(weakref.ref(one) for one in (model, draft) if one is not None)
        return opened(self, model, draft)

    def measure(device: torch.device) -> None:
        left.extend(reference() for reference in packed)

    opened = Backends.open
    monkeypatch.setattr(Backends, "open", remember)
    monkeypatch.setattr(load, "available_bytes", measure)
    assert load_engine(target, CONFIG, small).info.backend.startswith("native ")
    assert left == [None, None]
