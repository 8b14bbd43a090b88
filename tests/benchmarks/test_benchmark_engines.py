"""Benchmarks of the engine alone: how many requests they run at once, what they count, and what they divide by."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, cast

import pytest
import torch
from torch import Tensor

from benchmarks import sampling, speculation
from benchmarks.acceptance import Acceptance
from benchmarks.cells import Cell
from benchmarks.engine_cells import Engine
from benchmarks.random_checkpoint import SIZES, write
from benchmarks.versus_openvino import print_table
from model.checkpoint import load_checkpoint
from model.gpt import GPT
from model.tokenizer import Tokenizer
from server.engine.config import EngineConfig
from server.engine.load import load_engine
from server.engine.params import SamplingParams
from server.engine.sampler import Row
from server.engine.types import SequenceOutput, SequenceRequest


@dataclass(frozen=True)
class Outputs:
    """What is looked at of a step."""

    outputs: list[SequenceOutput]


class Scripted:
    """Takes an engine's place: in every step each sequence gets two tokens, its id and 7, until it has enough."""

    def __init__(self) -> None:
        self.added: list[SequenceRequest] = []
        self.peak = 0
        self._left: dict[int, int] = {}

    def add(self, request: SequenceRequest) -> None:
        self.added.append(request)
        self._left[request.id] = request.params.max_tokens
        self.peak = max(self.peak, len(self._left))

    def has_work(self) -> bool:
        return bool(self._left)

    def step(self) -> Outputs:
        return Outputs([self._advance(id_) for id_ in list(self._left)])

    def _advance(self, id_: int) -> SequenceOutput:
        tokens = (id_, 7)[: self._left[id_]]
        self._left[id_] -= len(tokens)
        if self._left[id_]:
            return SequenceOutput(id_, tokens, num_drafted=1)
        del self._left[id_]
        return SequenceOutput(id_, tokens, finish_reason="length", num_drafted=1)


def test_a_batch_is_greedy_goes_to_its_full_length_and_is_counted():
    core = Scripted()
    engine = Engine(cast(Any, core))
    assert engine.decode([[1, 2], [3], [4]], 5) == 15
    assert engine.decode([[5]], 4) == 4
    assert len({request.id for request in core.added}) == 4
    assert [request.prompt for request in core.added] == [(1, 2), (3,), (4,), (5,)]
    assert all(request.params.temperature == 0 and request.params.ignore_eos for request in core.added)


@pytest.mark.parametrize("concurrency", [1, 2, 5])
def test_requests_are_decoded_so_many_at_a_time_and_their_texts_kept_apart(concurrency: int):
    core = Scripted()
    requests = [SequenceRequest(id_, (1,), SamplingParams(3)) for id_ in (30, 10, 20)]
    measured = speculation.measure(cast(Any, core), requests, concurrency)
    assert core.peak == min(concurrency, 3)
    assert measured.texts == {0: [30, 7, 30], 1: [10, 7, 10], 2: [20, 7, 20]}
    assert measured.tokens_per_target_step == 9 / 6


def test_acceptance_is_read_off_the_counted_steps():
    acceptance = Acceptance([2, 1, 1])  # 0, 0, 1 and 2 drafts accepted
    assert acceptance.tokens_per_step == (1 + 1 + 2 + 3) / 4
    assert acceptance.by_position == [2 / 4, 1 / 4]


def test_ratios_with_the_other_engine_are_those_of_pairs(capsys: pytest.CaptureFixture[str]):
    ours, theirs = [[10.0, 7.0], [40.0, 7.0], [90.0, 7.0]], [[10.0, 14.0], [20.0, 14.0], [30.0, 14.0]]
    print_table([Cell(8, 48, 128), Cell(1, 512, 1)], ours, theirs)
    lines = capsys.readouterr().out.splitlines()
    assert lines[2] == "| 48 + 128 at 8 | 40 | 20 | 2.00 (1.00 to 3.00) |"
    assert lines[3] == "| 512 + 1 at 1 | 7 | 14 | 0.50 (0.50 to 0.50) |"


class Times:
    """A clock of the thread whose calls take the given seconds, and a wall clock that stands still until they end."""

    def __init__(self, seconds: Iterable[float]) -> None:
        self._seconds = list(seconds)
        self._now = 0.0
        self.num_calls = 0

    def work(self) -> None:
        self._now += self._seconds[self.num_calls]
        self.num_calls += 1

    def thread_time(self) -> float:
        return self._now

    def perf_counter(self) -> float:
        return 0.0 if self.num_calls < len(self._seconds) else 99.0


@pytest.mark.parametrize("batch", [1, 4])
def test_the_quickest_call_is_shared_by_its_rows(monkeypatch: pytest.MonkeyPatch, batch: int):
    times = Times([4.0, 2.0, 3.0])
    monkeypatch.setattr(sampling, "time", times)
    assert sampling.least_microseconds(times.work, batch) == 2e6 / batch
    assert times.num_calls == 3


def test_rows_that_are_sampled_differ_in_seed_and_history_and_have_one_only_where_it_is_asked_for():
    rows = sampling.rows_of(sampling.PARAMETERS["all of them"], 3, 97)
    assert len({row.params.seed for row in rows}) == 3
    histories = [tuple(row.state.tokens) for row in rows if row.state is not None]
    assert len(set(histories)) == 3
    assert all(max(history) < 97 for history in histories)
    assert [row.state for row in sampling.rows_of(sampling.PARAMETERS["greedy"], 2, 97)] == [None, None]


def test_a_sampler_is_given_as_many_rows_as_the_batch_has(monkeypatch: pytest.MonkeyPatch):
    given: list[tuple[int, list[int]]] = []

    def choose(logits: Tensor, places: Sequence[int], rows: Sequence[Row]) -> Any:
        given.append((len(rows), list(places)))

    monkeypatch.setattr(sampling, "_SECONDS", 0.0)
    assert sampling.measure(choose, SamplingParams(), 3, torch.zeros(8, 5)) >= 0
    assert set(map(str, given)) == {"(3, [0, 1, 2])"}


@pytest.mark.parametrize(("size", "millions"), [("gpt2-124m", 124), ("llama-107m", 107), ("moe-147m", 147)])
def test_models_have_as_many_parameters_as_they_are_called_after(size: str, millions: int):
    with torch.device("meta"):
        assert round(sum(p.numel() for p in GPT(SIZES[size]).parameters()) / 1e6) == millions


def test_a_written_checkpoint_is_served_and_each_of_its_tokens_is_text(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    tiny = replace(SIZES["moe-147m"], vocab_size=300, hidden_size=32, num_layers=2, intermediate_size=48)
    monkeypatch.setitem(SIZES, "tiny", replace(tiny, num_heads=4, num_kv_heads=2, head_dim=8))
    for folder in ("one", "two"):
        write("tiny", tmp_path / folder)
    one, two = (load_checkpoint(tmp_path / name, torch.bfloat16, torch.device("cpu")) for name in ("one", "two"))
    assert all(torch.equal(a, b) for a, b in zip(one.parameters(), two.parameters(), strict=True))
    tokenizer = Tokenizer.load(tmp_path / "one")
    assert tokenizer.vocab_size == 300
    core = load_engine(tmp_path / "one", EngineConfig(threads=1, dtype="float32"))
    assert Engine(core).decode([[1, 2, 3], [4]], 6) == 12
