"""This tree's engine against that of another commit: both in turn, pair by pair, and the median ratio.

python -m benchmarks.against COMMIT [--pairs 7] [arguments of benchmarks.engine]

The other tree is checked out beside this one for the time of the run, and runs this tree's benchmark.
"""

import argparse
import json
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from statistics import median

ROOT = Path(__file__).resolve().parents[1]
ENGINE = Path("benchmarks") / "engine.py"


@contextmanager
def checked_out(commit: str) -> Iterator[Path]:
    """A folder with the tree of `commit`, with this tree's benchmark in it."""
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch) / "tree"
        subprocess.run(["git", "worktree", "add", "--detach", str(folder), commit], cwd=ROOT, check=True)
        try:
            shutil.copyfile(ROOT / ENGINE, folder / ENGINE)
            yield folder
        finally:
            subprocess.run(["git", "worktree", "remove", "--force", str(folder)], cwd=ROOT, check=True)


def measure(tree: Path, arguments: Sequence[str]) -> dict[str, float]:
    """Seconds per thousand tokens, by kind of second."""
    command = [sys.executable, "-m", "benchmarks.engine", *arguments]
    measured: dict[str, float] = json.loads(subprocess.check_output(command, cwd=tree))
    return measured


def main() -> None:
    """Print every pair, then the medians of this tree's time over, and less, the other's."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("commit")
    parser.add_argument("--pairs", type=int, default=7)
    arguments, rest = parser.parse_known_args()
    runs: list[dict[Path, dict[str, float]]] = []
    with checked_out(arguments.commit) as other:
        for pair in range(arguments.pairs):
            order = (ROOT, other) if pair % 2 else (other, ROOT)
            runs.append({tree: measure(tree, rest) for tree in order})
            for kind, own in runs[-1][ROOT].items():
                print(f"pair {pair}: {kind} {own:.4f} s, there {runs[-1][other][kind]:.4f} s", flush=True)
    for kind in runs[0][ROOT]:
        ratio = median(run[ROOT][kind] / run[other][kind] for run in runs)
        difference = median(run[ROOT][kind] - run[other][kind] for run in runs)
        print(f"{kind}: median ratio {ratio:.3f}, median difference {1000 * difference:+.2f} ms per thousand tokens")


if __name__ == "__main__":
    main()
