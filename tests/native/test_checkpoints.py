"""The trained checkpoints: the native step in bfloat16 against the torch forward in float32 of the same weights."""

import copy
from pathlib import Path

import pytest
import torch
from native_models import native_model

import model
from model.checkpoint import load_checkpoint
from model.paged import Span
from server.engine.torch_runner import TorchRunner

FOLDERS = sorted((Path(model.__file__).parents[1] / "checkpoints").glob("shakespeare-*"))


@pytest.mark.parametrize("folder", FOLDERS, ids=lambda folder: folder.name)
def test_agrees_on_trained_weights(folder: Path) -> None:
    loaded = load_checkpoint(folder, torch.bfloat16, torch.device("cpu"))
    exact = TorchRunner(copy.deepcopy(loaded).float(), 16)
    tokens = [(7 * i + 3) % loaded.config.vocab_size for i in range(200)]
    spans, wanted = [Span(0, 200, range(16))], range(200)
    expected = exact.run(tokens, spans, wanted).logits
    got, is_finite = native_model(loaded, 16, 2).run(tokens, spans, wanted)
    rounded = TorchRunner(loaded, 16).run(tokens, spans, wanted).logits
    cosine = torch.nn.functional.cosine_similarity(got, expected)
    torch_cosine = torch.nn.functional.cosine_similarity(rounded, expected)
    print(
        folder.name,
        "native",
        cosine.mean().item(),
        cosine.min().item(),
        "torch bf16",
        torch_cosine.mean().item(),
        torch_cosine.min().item(),
    )
    assert all(is_finite)
    assert cosine.mean() > 0.9999
    assert cosine.mean() >= torch_cosine.mean()
