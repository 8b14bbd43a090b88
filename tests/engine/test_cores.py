"""How many cores there are to use: those of the process, capped by its container's share of time."""

import os
from pathlib import Path

import pytest

from server.engine import cores
from server.engine.backend import default_torch_threads
from server.engine.cores import available_cores


@pytest.mark.parametrize(
    ("limit", "expected"),
    [("max 100000", 6), ("200000 100000", 2), ("350000 100000", 3), ("50000 100000", 1), ("900000 100000", 6)],
)
def test_a_containers_limit_below_the_affinity_counts(
    limit: str, expected: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "cpu.max").write_text(f"{limit}\n")
    monkeypatch.setattr(cores, "_CPU_LIMIT", tmp_path / "cpu.max")
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(6)), raising=False)
    assert available_cores() == expected
    assert default_torch_threads() == max(1, expected - 1)


def test_without_a_limit_the_affinity_counts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cores, "_CPU_LIMIT", tmp_path / "absent")
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: {3, 5}, raising=False)
    assert available_cores() == 2
    monkeypatch.delattr(os, "sched_getaffinity")
    monkeypatch.setattr(os, "cpu_count", lambda: None)
    assert available_cores() == 1
