"""Serve checkpoints one after another, load each at rising concurrency, and print a table of what came out.

    make bench        or: python benchmarks/throughput.py [CHECKPOINT ...] [--concurrency 1 8 32 64]

Without arguments: the shipped checkpoints and random GPTs of 10M and 124M parameters. The last column is the share of
wall time the engine spent outside the model's forward: building inputs, scheduling, sampling, talking to the HTTP
process, and waiting for requests.
"""

import argparse
import contextlib
import json
import re
import socket
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks.random_checkpoint import write

ROOT = Path(__file__).resolve().parents[1]
PROMPT_TOKENS, OUTPUT_TOKENS = 48, 128
START_SECONDS = 120
COLUMNS = ("checkpoint", "concurrency", "output tokens/s", "TTFT p50 ms", "ITL p50 ms", "outside forward")


@dataclass(frozen=True)
class Measured:
    """One line of the table."""

    output_tokens_per_second: float
    time_to_first_token_ms: float
    inter_token_latency_ms: float
    share_outside_forward: float


@contextlib.contextmanager
def serve(checkpoint: Path, flags: Sequence[str]) -> Iterator[str]:
    """A server of its own for `checkpoint`, at the URL it yields."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    command = [sys.executable, "-m", "server", "--model", str(checkpoint), "--port", str(port), *flags]
    process = subprocess.Popen([*command, "--log-level", "warning"], cwd=ROOT)
    try:
        url = f"http://127.0.0.1:{port}"
        _wait_until_ready(url, process)
        yield url
    finally:
        process.terminate()
        process.wait()


def measure(url: str, concurrency: int, temperature: float, num_requests: int) -> Measured:
    """One load point, with the server's own account of where its step time went."""
    _load(url, concurrency, temperature, concurrency)  # warm-up, outside both sides of the ratio
    before = _forward_seconds(url)
    summary = _load(url, concurrency, temperature, num_requests)
    forward = _forward_seconds(url) - before
    return Measured(
        summary["throughput"]["output_tokens"],
        summary["ttft_ms"]["p50"],
        summary["itl_ms"]["p50"],
        1 - forward / summary["duration_seconds"],
    )


def _wait_until_ready(url: str, process: subprocess.Popen[bytes]) -> None:
    for _ in range(10 * START_SECONDS):
        with contextlib.suppress(urllib.error.URLError, ConnectionError):
            urllib.request.urlopen(f"{url}/health/ready").close()
            return
        if process.poll() is not None:
            break
        time.sleep(0.1)
    raise SystemExit(f"{url} did not become ready")


def _forward_seconds(url: str) -> float:
    with urllib.request.urlopen(f"{url}/metrics") as response:
        text = response.read().decode()
    (seconds,) = re.findall(r'^minigpt_step_phase_seconds_total\{.*phase="forward".*\} (\S+)$', text, re.MULTILINE)
    return float(seconds)


def _load(url: str, concurrency: int, temperature: float, num_requests: int) -> Any:
    with tempfile.TemporaryDirectory() as folder:
        report = Path(folder) / "report.json"
        command = [sys.executable, "-m", "loadtest", "--url", url, "--concurrency", str(concurrency)]
        command += ["--num-requests", str(num_requests), "--warmup-requests", "0"]
        command += ["--prompt-length", f"fixed:{PROMPT_TOKENS}", "--output-length", f"fixed:{OUTPUT_TOKENS}"]
        # Ids below 64 exist in every vocabulary, the smallest character-level one included.
        command += ["--prompt-token-ids", "--vocab-size", "64", "--ignore-eos", "--json", str(report)]
        subprocess.run([*command, "--temperature", str(temperature)], cwd=ROOT, check=True, stdout=subprocess.DEVNULL)
        return json.loads(report.read_text())["runs"][0]["summary"]


def _checkpoints(named: Sequence[Path], scratch: Path) -> list[Path]:
    if named:
        return list(named)
    for size in ("gpt-10m", "gpt2-124m"):
        write(size, scratch / size)
    return [*sorted((ROOT / "checkpoints").glob("*/")), scratch / "gpt-10m", scratch / "gpt2-124m"]


def main() -> None:
    """Print one Markdown table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("checkpoint", nargs="*", type=Path)
    parser.add_argument("--concurrency", nargs="+", type=int, default=[1, 8, 32, 64])
    parser.add_argument("--temperature", type=float, default=0.0)
    parser.add_argument("--requests-per-worker", type=int, default=3)
    parser.add_argument("--serve-flags", default="", help="passed to minigpt-serve, as one string")
    arguments = parser.parse_args()
    print(f"| {' | '.join(COLUMNS)} |\n|{'---|' * len(COLUMNS)}", flush=True)
    with tempfile.TemporaryDirectory() as scratch:
        for checkpoint in _checkpoints(arguments.checkpoint, Path(scratch)):
            with serve(checkpoint, arguments.serve_flags.split()) as url:
                for concurrency in arguments.concurrency:
                    requests = concurrency * arguments.requests_per_worker
                    line = measure(url, concurrency, arguments.temperature, requests)
                    print(
                        f"| {checkpoint.name} | {concurrency} | {line.output_tokens_per_second:.0f} "
                        f"| {line.time_to_first_token_ms:.1f} | {line.inter_token_latency_ms:.2f} "
                        f"| {100 * line.share_outside_forward:.1f} % |",
                        flush=True,
                    )


if __name__ == "__main__":
    main()
