"""Perplexity as the benchmark counts it, against the torch model and its written-out attention."""

import math
from pathlib import Path

import pytest
import torch
from torch import Tensor

from benchmarks import perplexity
from benchmarks.perplexity import FORMATS, Reading, held_out_windows, read
from model.checkpoint import save_checkpoint
from model.config import ModelConfig
from model.gpt import GPT, initialise
from model.reference import sequence_logits
from model.tokenizer import train_char_tokenizer
from training.corpus import read_documents, split_documents

TINY = ModelConfig(
    vocab_size=300,
    hidden_size=32,
    num_layers=2,
    num_heads=4,
    num_kv_heads=2,
    head_dim=8,
    intermediate_size=48,
    context_length=100,
)
TEXT = "".join(f"{number} green bottles hanging on the wall\n\n" for number in range(200))


@pytest.fixture(scope="module")
def model() -> GPT:
    model = GPT(TINY)
    initialise(model, torch.Generator().manual_seed(0))
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(3)  # so that it is sure of something
    return model


@pytest.fixture(scope="module")
def checkpoint(model: GPT, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("tiny")
    save_checkpoint(model, folder)
    train_char_tokenizer(TEXT).save(folder)
    return folder


def losses_by_hand(model: GPT, window: list[int]) -> list[float]:
    """Nats of every token but the first, each from the whole text before it."""
    found = []
    for place in range(1, len(window)):
        scores = sequence_logits(model, window[:place])[-1].double().tolist()
        found.append(math.log(sum(map(math.exp, scores))) - scores[window[place]])
    return found


def test_losses_are_those_of_the_torch_model_read_in_chunks_or_whole(
    model: GPT, checkpoint: Path, monkeypatch: pytest.MonkeyPatch
):
    windows = torch.randint(0, TINY.vocab_size, (2, 75), generator=torch.Generator().manual_seed(1))
    whole = read(checkpoint, FORMATS[0], windows)
    expected = torch.tensor([losses_by_hand(model, window) for window in windows.tolist()], dtype=torch.float64)
    assert whole.losses == pytest.approx(expected, abs=1e-4)
    likeliest = torch.stack([sequence_logits(model, window)[:-1].argmax(-1) for window in windows.tolist()])
    assert (whole.guesses == likeliest).double().mean() > 0.98  # but for near ties
    monkeypatch.setattr(perplexity, "MAX_STEP_TOKENS", 64)
    assert torch.equal(read(checkpoint, FORMATS[0], windows).losses, whole.losses)


@pytest.mark.parametrize("format_", FORMATS[1:], ids=lambda format_: format_.name)
def test_every_format_reads_nearly_as_well_and_keeps_what_it_says(checkpoint: Path, format_: perplexity.Format):
    windows = torch.randint(0, TINY.vocab_size, (1, 40), generator=torch.Generator().manual_seed(1))
    exact, rounded = (read(checkpoint, each, windows) for each in (FORMATS[0], format_))
    assert not torch.equal(exact.losses, rounded.losses)
    assert rounded.perplexity == pytest.approx(exact.perplexity, rel=0.05)
    assert rounded.bytes_per_block < exact.bytes_per_block


def test_who_knows_nothing_is_as_perplexed_as_there_are_tokens():
    nothing: Tensor = torch.full((2, 3), math.log(300), dtype=torch.float64)
    assert Reading(nothing, torch.zeros(2, 3), 1).perplexity == pytest.approx(300)


def test_windows_are_whole_pieces_from_one_end_of_the_held_out_text_to_the_other(checkpoint: Path, tmp_path: Path):
    file = tmp_path / "text.txt"
    file.write_text(TEXT)
    held_out = "".join(document.text for document in split_documents(read_documents(file), 0.1).validation)
    windows = held_out_windows(checkpoint, 50, file, 200)
    tokens = train_char_tokenizer(TEXT).encode(held_out)
    assert windows.shape == (4, 50)
    assert windows[0].tolist() == tokens[:50]
    assert windows[-1].tolist() == tokens[-50:]
    assert len(held_out_windows(checkpoint, 50, file, 10**6)) == len(tokens) // 50
    with pytest.raises(SystemExit, match=f"the held-out text has {len(tokens)} tokens"):
        held_out_windows(checkpoint, len(tokens) + 1, file, 200)
