"""Loads one server, or two in turn, with the load tester, and says how fast each was. Knows nothing of this server."""

import io
import json
import sys
import tempfile
from collections.abc import Sequence
from contextlib import redirect_stderr, redirect_stdout
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any

from loadtest.__main__ import main as load_test


@dataclass(frozen=True)
class Load:
    """`concurrency` users who ask at once and again when answered, with prompts of random ids that nobody has cached.

    `seed` must differ between loads of one server, or the later finds the prompts of the earlier in the prefix cache.
    """

    concurrency: int
    prompt_tokens: int
    output_tokens: int
    num_requests: int
    vocab_size: int
    seed: int
    temperature: float = 0.0

    @property
    def is_of_prompts(self) -> bool:
        """Whether it measures how fast prompts are read, rather than how fast answers are written."""
        return self.output_tokens == 1


@dataclass(frozen=True)
class Peer:
    """A server that somebody else runs, to be compared with."""

    url: str
    model: str | None
    rounds: int


@dataclass(frozen=True)
class Measured:
    """What the users of one run saw. `tokens_per_second` is of prompts where the load is of prompts, or of answers.

    There is no latency between tokens where answers have one.
    """

    tokens_per_second: float
    time_to_first_token_ms: float
    inter_token_latency_ms: float | None
    duration_seconds: float


@dataclass(frozen=True)
class Comparison:
    """Runs of two servers, pair by pair: the same requests, one server after the other."""

    ours: list[Measured]
    theirs: list[Measured]

    @property
    def speed_ratios(self) -> list[float]:
        """Ours over theirs; above 1 ours is faster."""
        return [a.tokens_per_second / b.tokens_per_second for a, b in zip(self.ours, self.theirs, strict=True)]

    @property
    def first_token_ratios(self) -> list[float]:
        """Ours over theirs; below 1 ours is sooner."""
        pairs = zip(self.ours, self.theirs, strict=True)
        return [a.time_to_first_token_ms / b.time_to_first_token_ms for a, b in pairs]


def measure(url: str, load: Load, num_warmup: int = 0) -> Measured:
    """One run of one server. Exits where a request failed or an answer was short."""
    return _run(["--url", url], load, num_warmup)["A"][0]


def compare(url: str, peer: Peer, load: Load, num_warmup: int) -> Comparison:
    """Runs of the server at `url` and of its peer in turn: first and second, second and first, and so on."""
    flags = ["--url", url, "--versus", peer.url, "--rounds", str(peer.rounds)]
    flags += ["--versus-model", peer.model] if peer.model else []
    measured = _run(flags, load, num_warmup)
    return Comparison(measured["A"], measured["B"])


def spread(ratios: Sequence[float]) -> str:
    """The median, with the least and the greatest where there are several."""
    many = f" ({min(ratios):.2f} to {max(ratios):.2f})" if len(ratios) > 1 else ""
    return f"{median(ratios):.2f}{many}"


def _run(flags: Sequence[str], load: Load, num_warmup: int) -> dict[str, list[Measured]]:
    """The runs of each server, by the load tester's letters, in the order of the rounds."""
    with tempfile.TemporaryDirectory() as folder:
        report = Path(folder) / "report.json"
        command = [*flags, "--json", str(report)]
        command += ["--concurrency", str(load.concurrency), "--num-requests", str(load.num_requests)]
        command += ["--warmup-requests", str(num_warmup), "--seed", str(load.seed)]
        command += ["--prompt-length", f"fixed:{load.prompt_tokens}", "--output-length", f"fixed:{load.output_tokens}"]
        command += ["--prompt-token-ids", "--vocab-size", str(load.vocab_size), "--ignore-eos"]
        # Some peers close connections that they announced to keep. To be fair, both get one for each request.
        command += ["--temperature", str(load.temperature), "--fresh-connections"]
        with redirect_stdout(io.StringIO()) as shown, redirect_stderr(shown):
            code = load_test(command)
        if code:
            sys.exit(f"{shown.getvalue()}\nthe load tester ended with {code}")
        runs = json.loads(report.read_text())["runs"]
    return {
        label: [_read(run, load) for run in sorted(runs, key=lambda run: run["round"]) if run["server"] == label]
        for label in ("A", "B")
    }


def _read(run: Any, load: Load) -> Measured:
    summary = run["summary"]
    num_tokens, expected = summary["tokens"]["output"], load.num_requests * load.output_tokens
    if num_tokens != expected:
        # A rate over answers of other lengths compares nothing; nor does one over tokens that were not counted right.
        sys.exit(f"{run['url']} answered with {num_tokens} tokens where {expected} were asked for (ignore_eos is sent)")
    rates = summary["throughput"]
    return Measured(
        tokens_per_second=rates["requests"] * load.prompt_tokens if load.is_of_prompts else rates["output_tokens"],
        time_to_first_token_ms=summary["ttft_ms"]["p50"],
        inter_token_latency_ms=summary["itl_ms"]["p50"] if summary["itl_ms"] else None,
        duration_seconds=summary["duration_seconds"],
    )
