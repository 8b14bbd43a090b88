"""The check at start: it passes on honest products, falls back from height-dependent ones, and refuses the hopeless."""

import logging
from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from engine_driver import decode, engine_core
from request_mix import request_mix
from tiny_models import CORNERS, FAMILIES, tiny_model
from torch import Tensor

from model.config import ModelConfig
from model.gpt import GPT
from server.engine.selfcheck import InexactBackendError, by_torch, is_exact, make_exact

LINEAR = F.linear


@pytest.fixture
def gqa() -> GPT:
    return tiny_model(FAMILIES["gqa"])


@pytest.mark.parametrize("name", [*FAMILIES, *CORNERS])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_tiny_models_are_exact_without_any_fallback(
    name: str, dtype: torch.dtype, caplog: pytest.LogCaptureFixture
) -> None:
    config: ModelConfig = {**FAMILIES, **CORNERS}[name]
    model = tiny_model(config, dtype)
    assert is_exact(by_torch(model), 512, 2)
    assert make_exact(model, 512, allow_inexact=False) is F.linear
    assert caplog.records == []


def height_dependent(rows: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    return LINEAR(rows, weight, bias) * (1 + 1e-3 * rows.numel() / rows.shape[-1])


def row_dependent_when_tall(rows: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """From 32 rows on, each half of them its own way."""
    out = LINEAR(rows, weight, bias)
    if rows.shape[0] >= 32:
        out[::2] *= 1.001
    return out


def never_the_same(rows: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """Neighbouring rows differ, whatever the height."""
    return LINEAR(rows, weight, bias) * torch.linspace(1.0, 1.01, rows.shape[0]).unsqueeze(-1)


def heights_used(model: GPT, monkeypatch: pytest.MonkeyPatch, broken: Callable[..., Tensor]) -> set[int]:
    heights: set[int] = set()

    def listening(rows: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
        heights.add(rows.numel() // rows.shape[-1])
        return broken(rows, weight, bias)

    monkeypatch.setattr(F, "linear", listening)
    decode(engine_core(model), request_mix(5, max_prompt=60, max_tokens=3))
    return heights


@pytest.mark.parametrize(("broken", "height"), [(height_dependent, 32), (row_dependent_when_tall, 8)])
def test_a_product_that_depends_on_height_gives_way_to_a_fixed_height(
    gqa: GPT,
    broken: Callable[..., Tensor],
    height: int,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    monkeypatch.setattr(F, "linear", broken)
    gqa.use_product(broken)
    assert not is_exact(by_torch(gqa), 512, 2)
    product = make_exact(gqa, 512, allow_inexact=False)
    assert product is not broken
    assert is_exact(by_torch(gqa), 512, 2)
    assert {record.levelno for record in caplog.records} == {logging.WARNING}
    assert "natural height" in caplog.text
    assert heights_used(gqa, monkeypatch, broken) == {height}


def test_the_fallback_is_exact_in_the_engine(gqa: GPT, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(F, "linear", height_dependent)
    make_exact(gqa, 512, allow_inexact=False)
    requests = request_mix(6, max_prompt=60, max_tokens=6)
    together = decode(engine_core(gqa), requests).results
    assert together == {given.id: decode(engine_core(gqa), [given]).results[given.id] for given in requests}


def test_a_hopeless_product_is_refused(gqa: GPT, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(F, "linear", never_the_same)
    with pytest.raises(InexactBackendError, match="allow_inexact"):
        make_exact(gqa, 512, allow_inexact=False)


def test_a_hopeless_product_serves_loudly_where_that_is_allowed(
    gqa: GPT, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(F, "linear", never_the_same)
    assert make_exact(gqa, 512, allow_inexact=True) is never_the_same
    assert "INEXACTLY" in caplog.text
    assert decode(engine_core(gqa), request_mix(2)).results.keys() == {0, 1}
