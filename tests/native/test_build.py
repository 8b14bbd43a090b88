"""Without a compiler, or with one that refuses, there is no library, and the package installs all the same."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

import model
from model.native import build as native_build
from model.native.build import BuildError, build, sources_hash

ROOT = Path(model.__file__).parents[1]


def test_without_a_compiler_the_build_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(BuildError, match=r"no C\+\+ compiler"):
        build(tmp_path / "library.so")
    assert list(tmp_path.iterdir()) == []


def test_a_compiler_that_refuses_is_quoted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    compiler = tmp_path / "c++"
    compiler.write_text("#!/bin/sh\necho too old >&2\nexit 1\n")
    compiler.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(BuildError, match="too old"):
        build(tmp_path / "library.so")
    assert not (tmp_path / "library.so").exists()


def test_the_package_installs_without_a_compiler(tmp_path: Path) -> None:
    command = [sys.executable, "setup.py", "build_ext", "--build-lib", str(tmp_path), "--build-temp", str(tmp_path)]
    environment = {**os.environ, "PATH": str(tmp_path)}
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "no C++ compiler" in done.stdout + done.stderr
    assert list(tmp_path.rglob("*.so")) == []


def test_the_hash_is_of_sources_and_flags_and_of_nothing_else(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    sources = tmp_path / "csrc"
    shutil.copytree(native_build.SOURCES, sources)
    before = sources_hash()
    monkeypatch.setattr(native_build, "SOURCES", sources)
    (sources / "pool.cpp.orig").write_text("an editor's")
    (sources / "cache").mkdir()
    assert sources_hash() == before
    monkeypatch.setattr(native_build, "FLAGS", (*native_build.FLAGS, "-Ofast"))
    of_other_flags = sources_hash()
    (sources / "pool.cpp").write_text("another")
    assert len({before, of_other_flags, sources_hash()}) == 3
