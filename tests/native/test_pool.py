"""The thread pool under more threads than processors, as a program of its own."""

import shutil
import subprocess
from pathlib import Path

import pytest

from model.native.build import SOURCES

STRESS = Path(__file__).parent / "pool_stress.cpp"


def test_every_piece_of_every_stage_is_computed_once(tmp_path: Path) -> None:
    compiler = shutil.which("c++")
    if compiler is None:
        pytest.skip("no compiler")
    program = tmp_path / "pool_stress"
    flags = ["-std=c++17", "-O2", "-pthread", f"-I{SOURCES}"]
    subprocess.run([compiler, *flags, str(STRESS), str(SOURCES / "pool.cpp"), "-o", str(program)], check=True)
    done = subprocess.run([str(program)], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (0, "")
