"""--quantize and --kv-cache reach the native back end, and are refused where torch serves."""

import pytest
import torch
from test_oracle import BASE, random_model

from model.native.abi import LibraryError
from server.engine import backend
from server.engine.backend import Backends
from server.engine.config import EngineConfig

SIZES = {"device": "cpu", "max_running": 4, "max_step_tokens": 64, "threads": 1}


@pytest.mark.parametrize("asked", [{"quantize": "int8"}, {"kv_cache": "int8"}])
def test_torch_refuses_what_only_the_native_back_end_can_do(asked: dict[str, str]) -> None:
    (name,) = asked
    model = random_model(BASE, torch.bfloat16)
    with pytest.raises(ValueError, match=f"^{name} is 'int8', which the torch back end cannot do$"):
        Backends(EngineConfig(backend="torch", **SIZES, **asked)).open(model, None)


@pytest.mark.parametrize("asked", [{"quantize": "int8"}, {"kv_cache": "int8"}])
def test_a_missing_library_is_no_reason_to_serve_other_answers(
    asked: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    (name,) = asked

    def missing() -> None:
        raise LibraryError("it was not built")

    monkeypatch.setattr(backend, "open_library", missing)
    model = random_model(BASE, torch.bfloat16)
    with pytest.raises(ValueError, match=f"^{name} is 'int8', but the native back end cannot serve: it was not built$"):
        Backends(EngineConfig(**SIZES, **asked)).open(model, None)


def test_settings_change_what_is_stored() -> None:
    model = random_model(BASE, torch.bfloat16)
    plain, _ = Backends(EngineConfig(**SIZES)).open(model, None)
    small, _ = Backends(EngineConfig(quantize="int8", kv_cache="int8", **SIZES)).open(model, None)
    assert small.bytes_per_block == plain.bytes_per_block * (16 + 4) // 32
