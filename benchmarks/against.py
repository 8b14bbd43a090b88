"""This tree's engine against that of another commit: both in turn, pair by pair, and the median ratio.

python -m benchmarks.against COMMIT [--pairs 7] [--benchmark engine] [arguments of the benchmark]

The other tree is checked out beside this one for the time of the run, and runs this tree's benchmark: `engine`,
`overhead`, which tells smaller differences, or `http_cost`.
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
BENCHMARKS = ("engine", "overhead", "http_cost")
CARRIED = (*BENCHMARKS, "stub_engine")  # what they need, too


@contextmanager
def checked_out(commit: str) -> Iterator[Path]:
    """A folder with the tree of `commit`, with this tree's benchmarks in it."""
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch) / "tree"
        subprocess.run(["git", "worktree", "add", "--detach", str(folder), commit], cwd=ROOT, check=True)
        try:
            for name in CARRIED:
                shutil.copy(ROOT / "benchmarks" / f"{name}.py", folder / "benchmarks")
            yield folder
        finally:
            subprocess.run(["git", "worktree", "remove", "--force", str(folder)], cwd=ROOT, check=True)


def measure(tree: Path, benchmark: str, arguments: Sequence[str]) -> dict[str, float]:
    """Seconds per thousand tokens, by kind of second."""
    command = [sys.executable, "-m", f"benchmarks.{benchmark}", *arguments]
    measured: dict[str, float] = json.loads(subprocess.check_output(command, cwd=tree))
    return measured


def main() -> None:
    """Print every pair, then the medians of this tree's time over, and less, the other's."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("commit")
    parser.add_argument("--pairs", type=int, default=7)
    parser.add_argument("--benchmark", choices=BENCHMARKS, default="engine")
    arguments, rest = parser.parse_known_args()
    runs: list[dict[Path, dict[str, float]]] = []
    with checked_out(arguments.commit) as other:
        for pair in range(arguments.pairs):
            order = (ROOT, other) if pair % 2 else (other, ROOT)
            runs.append({tree: measure(tree, arguments.benchmark, rest) for tree in order})
            for kind, own in runs[-1][ROOT].items():
                print(f"pair {pair}: {kind} {own:.4f} s, there {runs[-1][other][kind]:.4f} s", flush=True)
    for kind in runs[0][ROOT]:
        ratio = median(run[ROOT][kind] / run[other][kind] for run in runs)
        difference = median(run[ROOT][kind] - run[other][kind] for run in runs)
        print(f"{kind}: median ratio {ratio:.3f}, median difference {1000 * difference:+.2f} ms per thousand tokens")


if __name__ == "__main__":
    main()
