"""A server of our own for the time of a benchmark, and what it tells of itself."""

import contextlib
import json
import re
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import IO

ROOT = Path(__file__).resolve().parents[1]
START_SECONDS = 120
_POLL_SECONDS = 0.05


@contextlib.contextmanager
def serve(checkpoint: Path, flags: Sequence[str]) -> Iterator[str]:
    """A ready server for `checkpoint`, on a free port, at the URL it yields. Exits with its log where it fails."""
    command = [sys.executable, "-m", "server", "--model", str(checkpoint), "--port", "0", *flags]
    # The log goes to a file and not through a pipe, which would stall the server once nobody reads on.
    with tempfile.TemporaryFile("w+") as log:
        process = subprocess.Popen(command, cwd=ROOT, stderr=log)
        try:
            yield _ready_url(process, log)
        finally:
            process.terminate()
            process.wait()


def context_length(url: str) -> int:
    """The tokens of prompt and answer together that the first model takes."""
    with urllib.request.urlopen(f"{url}/v1/models") as response:
        return int(json.load(response)["data"][0]["max_model_len"])


def forward_seconds(url: str) -> float:
    """Seconds the engine has spent in the model's forward so far."""
    with urllib.request.urlopen(f"{url}/metrics") as response:
        text = response.read().decode()
    (seconds,) = re.findall(r'^minigpt_step_phase_seconds_total\{.*phase="forward".*\} (\S+)$', text, re.MULTILINE)
    return float(seconds)


def _ready_url(process: subprocess.Popen[bytes], log: IO[str]) -> str:
    give_up_at = time.monotonic() + START_SECONDS
    while True:
        log.seek(0)
        text = log.read()
        if ready := re.search(r" ready url=(\S+)", text):
            return ready[1]
        if process.poll() is not None or time.monotonic() > give_up_at:
            sys.exit(f"{text}\nthe server did not become ready")
        time.sleep(_POLL_SECONDS)
