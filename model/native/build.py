"""Compile the native back end: one library in which every instruction set's unit was compiled for its own processor.

Knows nothing but compilers, so that `setup.py` can use it before anything is installed.
"""

import hashlib
import platform
import shutil
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

SOURCES = Path(__file__).parent / "csrc"
LIBRARY = Path(__file__).parent / "library.so"
# gcc 12 takes the deliberately undefined registers of its own intrinsics for mistakes, hence two warnings less. No
# contraction: whether a product and a sum fuse must not depend on what the compiler inlined where.
FLAGS = (
    "-std=c++17",
    "-O3",
    "-fPIC",
    "-fno-math-errno",
    "-ffp-contract=off",
    "-Wall",
    "-Wextra",
    "-Wno-uninitialized",
    "-Wno-maybe-uninitialized",
    "-pthread",
)
COMMON = ("measure.cpp", "memory.cpp", "pool.cpp", "session.cpp", "draw.cpp", "decode.cpp", "library.cpp")
AVX512 = (
    "-mavx512f",
    "-mavx512bw",
    "-mavx512vl",
    "-mavx512dq",
    "-mavx512bf16",
    "-mavx512vnni",
    "-mfma",
    "-mprefer-vector-width=512",
)
UNITS: dict[str, tuple[str, ...]] = {
    "avx512": ("-DUSE_AVX512", *AVX512),
    "avx2": ("-DUSE_AVX2", "-mavx2", "-mfma"),
    "portable": (),
}


class BuildError(RuntimeError):
    """There is no compiler, or it refused; the message holds what it said."""


def sources_hash() -> str:
    """Of all the library is made from, and how: it says so itself, so that a stale one is found out."""
    digest = hashlib.sha256(repr((FLAGS, COMMON, UNITS)).encode())
    for path in sorted(path for path in SOURCES.iterdir() if path.suffix in (".h", ".cpp")):
        digest.update(path.name.encode() + b"\0" + path.read_bytes() + b"\0")
    return digest.hexdigest()[:16]


def build(library: Path = LIBRARY) -> None:
    """Compile and link `library`. Raises BuildError."""
    compiler = shutil.which("c++") or shutil.which("g++") or shutil.which("clang++")
    if compiler is None:
        raise BuildError("no C++ compiler (c++, g++ or clang++) on the path")
    library.parent.mkdir(parents=True, exist_ok=True)
    is_x86 = platform.machine() in ("x86_64", "AMD64")
    jobs: list[tuple[Path, Path, tuple[str, ...]]] = [
        (SOURCES / "forward.cpp", library.with_suffix(f".{isa}.o"), (f"-DISA={isa}", *flags))
        for isa, flags in UNITS.items()
        if is_x86 or isa == "portable"
    ]
    made_from = f'-DSOURCES_HASH="{sources_hash()}"'
    jobs += [(SOURCES / name, library.with_suffix(f".{name}.o"), (made_from,)) for name in COMMON]
    objects = [str(object_) for _, object_, _ in jobs]
    fresh = library.with_suffix(".new")
    with ThreadPoolExecutor(2) as executor:
        list(executor.map(lambda job: _run(compiler, *FLAGS, *job[2], "-c", str(job[0]), "-o", str(job[1])), jobs))
    _run(compiler, "-shared", "-pthread", *objects, "-o", str(fresh))
    for object_ in objects:
        Path(object_).unlink()
    fresh.replace(library)  # whoever runs the old one keeps it


def _run(*command: str) -> None:
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        raise BuildError(f"{' '.join(command)}\n{done.stderr}")
    if done.stderr:
        sys.stderr.write(done.stderr)


if __name__ == "__main__":
    build()
