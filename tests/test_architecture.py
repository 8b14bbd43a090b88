"""The floors of the architecture, as imports: what may know what, and how long a file may grow."""

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
PACKAGES = ("model", "server", "training", "loadtest")
MAX_LINES = 400

# (files below this path, may not import anything that starts with one of these)
FORBIDDEN = [
    ("model", ("server", "training", "loadtest", "fastapi", "starlette", "prometheus_client", "asyncio")),
    ("training", ("server", "loadtest", "fastapi", "prometheus_client")),
    ("loadtest", ("model", "server", "training", "torch")),
    ("server", ("training", "loadtest")),
    ("server/engine", ("asyncio", "fastapi", "starlette", "uvicorn", "prometheus_client", "msgspec", "server.api")),
    ("server/engine/scheduler.py", ("torch", "numpy", "model")),
    ("server/engine/block_pool.py", ("torch", "numpy", "model")),
    ("server/engine/sequence.py", ("torch", "numpy", "model")),
    (
        "server/api",
        ("torch", "prometheus_client", "server.engine.core", "server.engine.runner", "server.engine_process"),
    ),
]


def python_files(below: str) -> list[Path]:
    path = ROOT / below
    return [path] if path.is_file() else sorted(path.rglob("*.py"))


def imported_modules(path: Path) -> Iterator[str]:
    """Absolute names of everything a file imports, `from a import b` giving both a and a.b."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path} imports relatively"
            assert node.module is not None
            yield node.module
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


@pytest.mark.parametrize(("below", "forbidden"), FORBIDDEN)
def test_imports_point_downwards_only(below: str, forbidden: tuple[str, ...]) -> None:
    files = python_files(below)
    assert files, f"nothing is below {below}"
    broken = [
        f"{path.relative_to(ROOT)} imports {name}"
        for path in files
        for name in imported_modules(path)
        if any(name == banned or name.startswith(f"{banned}.") for banned in forbidden)
    ]
    assert not broken


def test_the_http_process_never_imports_torch() -> None:
    program = "import sys, server.__main__, server.api.app; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", program], cwd=ROOT, check=False).returncode == 0


@pytest.mark.parametrize("package", PACKAGES)
def test_no_file_outgrows_a_reader(package: str) -> None:
    assert [path for path in python_files(package) if len(path.read_text().splitlines()) > MAX_LINES] == []
