"""This engine against OpenVINO GenAI's continuous batching, both in process: pairs of runs in turn, and the ratios.

    python -m benchmarks.versus_openvino CHECKPOINT OPENVINO_FOLDER [--peer-python /path/to/python]

OPENVINO_FOLDER holds the same model as `optimum-cli export openvino --model CHECKPOINT ...` writes it. Every run is a
process of its own that loads the model; openvino-genai is no dependency of this project and may live in another
environment. Greedy, the same prompts for both, all of a batch arriving at once, no end-of-sequence before the full
length. By default both compute in bfloat16, theirs with keys and values in bfloat16 too, as ours has them. For int8:

    --engine '{"threads": 2, "quantize": "int8"}' with a folder exported with --weight-format int8
"""

import argparse
import json
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from statistics import median

from benchmarks.cells import Cell, Plan
from benchmarks.driving import spread
from benchmarks.serving import ROOT

PROMPT_TOKENS, OUTPUT_TOKENS, LONG_PROMPT_TOKENS = 48, 128, 512
ENGINE = {"threads": 2, "max_step_tokens": 512}
PROPERTIES = {"INFERENCE_PRECISION_HINT": "bf16", "KV_CACHE_PRECISION": "bf16", "INFERENCE_NUM_THREADS": 2}
SCHEDULING = {"cache_size": 2, "max_num_seqs": 64, "max_num_batched_tokens": 512}


def run(python: str, module: str, *arguments: str) -> list[float]:
    """The rates that a run printed last. Exits where it failed, with what it said last."""
    command = [python, "-m", f"benchmarks.{module}", *arguments]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    if done.returncode:
        sys.exit(done.stderr.strip().rpartition("\n")[2])
    measured: list[float] = json.loads(done.stdout.strip().rpartition("\n")[2])
    return measured


def print_table(cells: Sequence[Cell], ours: Sequence[Sequence[float]], theirs: Sequence[Sequence[float]]) -> None:
    """Medians of the rates, and of the ratios of pairs. Both hold a list of rates for each run."""
    print("| prompt + output | ours, tokens/s | theirs | ratio |\n|---|---|---|---|")
    for number, cell in enumerate(cells):
        own, other = ([rates[number] for rates in runs] for runs in (ours, theirs))
        ratios = [a / b for a, b in zip(own, other, strict=True)]
        print(f"| {cell} | {median(own):.0f} | {median(other):.0f} | {spread(ratios)} |")


def main() -> None:
    """Print every run, then the table."""
    arguments = _arguments()
    cells = [Cell(workers, PROMPT_TOKENS, OUTPUT_TOKENS) for workers in arguments.concurrency]
    cells += [Cell(workers, LONG_PROMPT_TOKENS, 1) for workers in arguments.prompt_concurrency]
    vocab_size = json.loads((arguments.checkpoint / "config.json").read_text())["vocab_size"]
    plan = Plan(cells, vocab_size, arguments.seconds).to_json()
    sides = {
        "ours": (sys.executable, "engine_cells", str(arguments.checkpoint), plan, arguments.engine),
        "theirs": (
            arguments.peer_python,
            "openvino_cells",
            str(arguments.openvino_folder),
            plan,
            arguments.properties,
            arguments.scheduling,
        ),
    }
    measured: dict[str, list[list[float]]] = {"ours": [], "theirs": []}
    for pair in range(arguments.pairs):
        # The peer goes first, so that it is known to be there before anything is measured.
        for name in ("theirs", "ours") if pair % 2 == 0 else ("ours", "theirs"):
            measured[name].append(run(*sides[name]))
            print(f"pair {pair}, {name}: {' '.join(f'{rate:.0f}' for rate in measured[name][-1])}", flush=True)
    print_table(cells, measured["ours"], measured["theirs"])


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("checkpoint", type=Path)
    parser.add_argument("openvino_folder", type=Path)
    parser.add_argument("--peer-python", default=sys.executable, help="a Python that has openvino-genai")
    parser.add_argument("--pairs", type=int, default=3)
    parser.add_argument("--seconds", type=float, default=3.0, help="of each batch size, at least")
    parser.add_argument("--concurrency", nargs="*", type=int, default=[1, 8, 32, 64])
    parser.add_argument("--prompt-concurrency", nargs="*", type=int, default=[1, 8], help="of the prompts alone")
    parser.add_argument("--engine", default=json.dumps(ENGINE), help="fields of EngineConfig, as JSON")
    parser.add_argument("--properties", default=json.dumps(PROPERTIES), help="their device's, as JSON")
    parser.add_argument("--scheduling", default=json.dumps(SCHEDULING), help="their scheduler's, as JSON")
    return parser.parse_args()


if __name__ == "__main__":
    main()
