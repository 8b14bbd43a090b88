import re
from pathlib import Path

import pytest
import torch

from model import memory
from model.memory import available_bytes


def container(folder: Path, limit: str, current: int, cached: int) -> Path:
    (folder / "memory.max").write_text(f"{limit}\n")
    (folder / "memory.current").write_text(f"{current}\n")
    (folder / "memory.stat").write_text(f"anon 5\ninactive_file {cached}\nactive_file 1\n")
    return folder


def test_the_host_says_how_much_is_available(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    info = tmp_path / "meminfo"
    info.write_text("MemTotal:  4096 kB\nMemAvailable:    1024 kB\n")
    monkeypatch.setattr(memory, "_MEMORY_INFO", info)
    monkeypatch.setattr(memory, "_CONTROL_GROUP", tmp_path / "absent")
    assert available_bytes(torch.device("cpu")) == 2**20


def test_a_container_limit_below_the_hosts_counts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    info = tmp_path / "meminfo"
    info.write_text("MemAvailable:    1024 kB\n")
    monkeypatch.setattr(memory, "_MEMORY_INFO", info)
    monkeypatch.setattr(memory, "_CONTROL_GROUP", container(tmp_path, "10000", 4000, 999))
    assert available_bytes(torch.device("cpu")) == 7000
    container(tmp_path, "max", 4000, 999)
    assert available_bytes(torch.device("cpu")) == 2**20
    container(tmp_path, "1000", 4000, 1)
    assert available_bytes(torch.device("cpu")) == 0


def test_a_system_that_does_not_say_is_not_guessed_at(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(memory, "_MEMORY_INFO", tmp_path / "absent")
    monkeypatch.setattr(memory, "_CONTROL_GROUP", tmp_path / "absent")
    assert available_bytes(torch.device("cpu")) is None
    (tmp_path / "absent").write_text("MemTotal: 5 kB\n")
    assert available_bytes(torch.device("cpu")) is None


def test_this_machine_has_some_memory() -> None:
    found = available_bytes(torch.device("cpu"))
    if found is None:
        pytest.skip("the system does not say how much memory is available")
    total = re.search(r"MemTotal:\s+(\d+)", Path("/proc/meminfo").read_text())
    assert total is not None
    assert 0 < found <= int(total[1]) * 1024
