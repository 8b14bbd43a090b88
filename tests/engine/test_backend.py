"""Which back end serves a model: the native one where it can, else torch, and then the log says so, once."""

import logging
import shutil
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path

import pytest
import torch
from tiny_models import FAMILIES, GQA, tiny_model

import server.engine.backend
from model.gpt import GPT
from model.native.abi import LIBRARY, NativeError, open_library
from model.paged import Span
from server.engine.backend import Backends
from server.engine.config import BackendName, EngineConfig
from server.engine.cores import available_cores
from server.engine.native_runner import NativeRunner
from server.engine.runner import StepResult
from server.engine.sampling.native import NativeSampler
from server.engine.tracing_inside import Watch
from server.engine.verify import choose_by_torch

CPU = torch.device("cpu")


def backends(name: BackendName = "auto") -> Backends:
    return Backends(EngineConfig(device="cpu", backend=name, threads=2))


@pytest.fixture(autouse=True)
def threads_put_back() -> Iterator[None]:
    threads = torch.get_num_threads()
    yield
    torch.set_num_threads(threads)


@pytest.fixture
def gqa() -> GPT:
    return tiny_model(GQA)


class Inexact(NativeRunner):
    """A row's logits depend on how many share its step."""

    def run(
        self, tokens: Sequence[int], spans: Sequence[Span], wanted: Sequence[int], watch: Watch | None = None
    ) -> StepResult:
        result = super().run(tokens, spans, wanted, watch)
        return replace(result, logits=result.logits * (1.0 + 1e-6 * len(tokens)))


def break_exactness(monkeypatch: pytest.MonkeyPatch, folder: Path) -> str:
    monkeypatch.setattr(server.engine.backend, "NativeRunner", Inexact)
    return "rows depend on their neighbours"


def lose_library(monkeypatch: pytest.MonkeyPatch, folder: Path) -> str:
    monkeypatch.setattr(server.engine.backend, "open_library", partial(open_library, folder / "absent.so"))
    return "it was not built"


def garble_library(monkeypatch: pytest.MonkeyPatch, folder: Path) -> str:
    (folder / "garbled.so").write_bytes(b"no library")
    monkeypatch.setattr(server.engine.backend, "open_library", partial(open_library, folder / "garbled.so"))
    return "it does not load"


def outdate_library(monkeypatch: pytest.MonkeyPatch, folder: Path) -> str:
    shutil.copy(LIBRARY, folder / "outdated.so")
    monkeypatch.setattr(server.engine.backend, "open_library", partial(open_library, folder / "outdated.so"))
    monkeypatch.setattr("model.native.abi.sources_hash", lambda: "of other sources")
    return "it was built from other sources"


Spoil = Callable[[pytest.MonkeyPatch, Path], str]
LIBRARIES: list[Spoil] = [lose_library, garble_library, outdate_library]


@pytest.mark.parametrize("family", FAMILIES)
def test_the_native_back_end_serves_where_it_can(family: str, caplog: pytest.LogCaptureFixture) -> None:
    backend, draft = backends().open(tiny_model(FAMILIES[family]), tiny_model(replace(GQA, num_layers=1)))
    assert draft is not None
    for one in (backend, draft):
        assert one.name.startswith("native ")
        assert isinstance(one.new_runner(4), NativeRunner)
    assert caplog.records == []


def test_torch_serves_where_it_is_asked_for(gqa: GPT, caplog: pytest.LogCaptureFixture) -> None:
    backend, draft = backends("torch").open(gqa, gqa)
    assert draft is not None
    assert (backend.name, draft.name) == ("torch", "torch")
    assert caplog.records == []


def test_torch_serves_loudly_where_the_native_back_end_is_not_exact(
    gqa: GPT, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    reason = break_exactness(monkeypatch, tmp_path)
    opened = backends()
    backend, draft = opened.open(gqa, gqa)
    assert draft is not None
    assert (backend.name, draft.name) == ("torch", "torch")
    assert isinstance(opened.open_sampler(CPU), NativeSampler)
    (record,) = caplog.records
    assert record.levelno == logging.WARNING
    assert "torch serves instead of the native back end" in record.message
    assert reason in record.message


@pytest.mark.parametrize(("name", "lost"), [("auto", "computes and chooses tokens"), ("torch", "chooses tokens")])
@pytest.mark.parametrize("spoil", LIBRARIES)
def test_a_library_that_is_lost_is_said_once_for_all_models_and_all_it_did(
    spoil: Spoil,
    name: BackendName,
    lost: str,
    gqa: GPT,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    reason = spoil(monkeypatch, tmp_path)
    opened = backends(name)
    for _ in range(2):
        backend, draft = opened.open(gqa, gqa)
        assert draft is not None
        assert (backend.name, draft.name) == ("torch", "torch")
        assert opened.open_sampler(CPU) is choose_by_torch
    (record,) = caplog.records
    assert record.levelno == logging.WARNING
    assert record.message.startswith(f"torch {lost} instead of the native library, and slower: {reason}")


def test_other_devices_have_no_library_to_lose(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    lose_library(monkeypatch, tmp_path)
    assert backends().open_sampler(torch.device("meta")) is choose_by_torch
    assert caplog.records == []


@pytest.mark.parametrize("spoil", [break_exactness, *LIBRARIES])
def test_a_native_back_end_that_cannot_serve_is_refused_in_one_line_to_who_insists(
    spoil: Spoil, gqa: GPT, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    reason = spoil(monkeypatch, tmp_path)
    with pytest.raises(ValueError, match=rf"^backend is 'native', .*{reason}[^\n]*$"):
        backends("native").open(gqa, None)


def test_a_model_that_is_not_supported_falls_back_alone(gqa: GPT, caplog: pytest.LogCaptureFixture) -> None:
    opened = backends()
    half = tiny_model(GQA, torch.float16)
    names = [opened.open(model, None)[0].name.split()[0] for model in (half, gqa)]
    assert names == ["torch", "native"]
    (record,) = caplog.records
    assert "weights are torch.float16" in record.message
    with pytest.raises(ValueError, match=r"^backend is 'native', .*weights are torch.float16[^\n]*$"):
        backends("native").open(half, None)


def test_a_draft_that_is_not_supported_takes_its_target_along(gqa: GPT, caplog: pytest.LogCaptureFixture) -> None:
    """One back end computes both, so that what the log says is true of the pair."""
    backend, draft = backends().open(gqa, tiny_model(GQA, torch.float16))
    assert draft is not None
    assert (backend.name, draft.name) == ("torch", "torch")
    (record,) = caplog.records
    assert "of the draft model, weights are torch.float16" in record.message


def refuse_sessions(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*arguments: object) -> None:
        raise NativeError("no thread to be had")

    monkeypatch.setattr(server.engine.backend, "NativeModel", refuse)


def test_torch_serves_where_the_system_gives_no_session(
    gqa: GPT, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    refuse_sessions(monkeypatch)
    assert backends().open(gqa, None)[0].name == "torch"
    (record,) = caplog.records
    assert "no thread to be had" in record.message
    with pytest.raises(ValueError, match=r"^backend is 'native', .*no thread to be had$"):
        backends("native").open(gqa, None)


@pytest.mark.parametrize("name", ["native", "torch"])
def test_a_cache_that_no_memory_holds_is_refused_with_its_size(name: BackendName, gqa: GPT) -> None:
    backend, _ = backends(name).open(gqa, None)
    num_blocks = 2**40
    size = num_blocks * backend.bytes_per_block
    with pytest.raises(
        ValueError, match=f"num_blocks is {num_blocks}; the {size} bytes of such a cache cannot be had$"
    ):
        backend.new_runner(num_blocks)


def test_a_session_that_cannot_be_had_is_refused_in_one_line(gqa: GPT, monkeypatch: pytest.MonkeyPatch) -> None:
    backend, _ = backends().open(gqa, None)
    refuse_sessions(monkeypatch)
    with pytest.raises(ValueError, match=r"^the native back end cannot start: no thread[^\n]*$"):
        backend.new_runner(9)


def test_more_threads_than_cores_are_remarked_on(caplog: pytest.LogCaptureFixture) -> None:
    Backends(EngineConfig(threads=available_cores()))
    assert not caplog.records
    Backends(EngineConfig(threads=available_cores() + 1))
    assert f"but only {available_cores()} cores may be used" in caplog.text
