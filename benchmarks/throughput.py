"""Serve a checkpoint, load it at rising concurrency, and print a table of what came out.

    make bench                                                           the shipped and two random checkpoints
    make bench BENCH_FLAGS="--checkpoint DIR ..."                        others
    make bench BENCH_FLAGS="--checkpoint DIR --versus http://HOST:PORT"  in turn with a server of yours, and the ratios

Each load is of prompts with an answer (48 + 128 tokens; tokens/s are those of answers), or of prompts alone (512 + 1;
tokens/s are those of prompts). "Outside forward" is the share of wall time the engine spent outside the model: building
inputs, scheduling, sampling, talking to the HTTP process, and waiting for requests.

With a peer every load is run in pairs, one server after the other with the same requests. Figures are medians, ratios
ours / theirs with the least and the greatest of the pairs. The peer may be any server that speaks OpenAI's completions
with token ids and knows `ignore_eos`; while it is idle it must use no processor, which the first line lets you see.
"""

import argparse
import json
import shlex
import sys
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from statistics import median

from benchmarks.driving import Load, Peer, compare, measure, spread
from benchmarks.quiet import QUIET_SHARE, await_quiet
from benchmarks.random_checkpoint import write
from benchmarks.serving import ROOT, context_length, forward_seconds, serve

PROMPT_TOKENS, OUTPUT_TOKENS = 48, 128
LONG_PROMPT_TOKENS = 512
# At concurrency 1 a run of one or two answers would be mostly its beginning and its end.
MIN_REQUESTS = 4
MAX_WARMUP_REQUESTS = 8
# Far above the seeds of loads, which are counted from 0.
WARMUP_SEED = 1_000
ASKED = ("checkpoint", "prompt + output", "concurrency")
COLUMNS = (*ASKED, "tokens/s", "TTFT p50 ms", "ITL p50 ms", "outside forward")
VERSUS_COLUMNS = (*ASKED, "tokens/s", "theirs", "ratio", "TTFT p50 ms", "theirs", "ratio")


def loads(arguments: argparse.Namespace, vocab_size: int, context: int) -> Iterator[Load]:
    """Every load of one checkpoint, shortened to its context."""
    shapes = [(PROMPT_TOKENS, OUTPUT_TOKENS, workers) for workers in arguments.concurrency]
    shapes += [(LONG_PROMPT_TOKENS, 1, workers) for workers in arguments.prompt_concurrency]
    for seed, (prompt, output, workers) in enumerate(shapes):
        yield Load(
            concurrency=workers,
            prompt_tokens=min(prompt, context - output),
            output_tokens=output,
            num_requests=max(MIN_REQUESTS, workers * arguments.requests_per_worker),
            vocab_size=vocab_size,
            seed=seed,
            temperature=arguments.temperature,
        )


def line_alone(url: str, load: Load) -> list[str]:
    """What this server did under `load`, with its own account of where its step time went."""
    # Outside both sides of the share below, and with other prompts.
    measure(url, replace(load, num_requests=_num_warmup(load), seed=load.seed + WARMUP_SEED))
    before = forward_seconds(url)
    measured = measure(url, load)
    share = 1 - (forward_seconds(url) - before) / measured.duration_seconds
    between = measured.inter_token_latency_ms
    return [
        f"{measured.tokens_per_second:.0f}",
        f"{measured.time_to_first_token_ms:.1f}",
        "" if between is None else f"{between:.2f}",
        f"{100 * share:.1f} %",
    ]


def line_versus(url: str, peer: Peer, load: Load) -> list[str]:
    """Medians of both servers, and of the ratios of the pairs."""
    comparison = compare(url, peer, load, _num_warmup(load))
    sides = (comparison.ours, comparison.theirs)
    speeds = [median(run.tokens_per_second for run in runs) for runs in sides]
    waits = [median(run.time_to_first_token_ms for run in runs) for runs in sides]
    return [
        *(f"{speed:.0f}" for speed in speeds),
        spread(comparison.speed_ratios),
        *(f"{wait:.1f}" for wait in waits),
        spread(comparison.first_token_ratios),
    ]


def print_row(*fields: object) -> None:
    """One line of a Markdown table, at once."""
    print(f"| {' | '.join(map(str, fields))} |", flush=True)


def main() -> None:
    """Print one Markdown table."""
    arguments = _arguments()
    peer = arguments.versus and Peer(arguments.versus, arguments.versus_model, arguments.rounds)
    columns = VERSUS_COLUMNS if peer else COLUMNS
    with tempfile.TemporaryDirectory() as scratch:
        for number, checkpoint in enumerate(_checkpoints(arguments.checkpoint, Path(scratch))):
            vocab_size = json.loads((checkpoint / "config.json").read_text())["vocab_size"]
            with serve(checkpoint, shlex.split(arguments.serve_flags)) as url:
                share = await_quiet(QUIET_SHARE)
                if number == 0:
                    _say_how_quiet(share)
                    print_row(*columns)
                    print_row(*["---"] * len(columns))
                for load in loads(arguments, vocab_size, context_length(url)):
                    line = line_versus(url, peer, load) if peer else line_alone(url, load)
                    asked = f"{load.prompt_tokens} + {load.output_tokens}"
                    print_row(checkpoint.name, asked, load.concurrency, *line)


def _num_warmup(load: Load) -> int:
    return min(load.concurrency, MAX_WARMUP_REQUESTS)


def _say_how_quiet(share: float | None) -> None:
    if share is not None:
        warning = " (a benchmark beside other work measures the other work)" if share > QUIET_SHARE else ""
        print(f"Processors busy before the first request: {100 * share:.0f} %{warning}\n", flush=True)


def _checkpoints(named: Sequence[Path], scratch: Path) -> list[Path]:
    if named:
        return list(named)
    for size in ("gpt-10m", "gpt2-124m"):
        write(size, scratch / size)
    return [*sorted((ROOT / "checkpoints").glob("*/")), scratch / "gpt-10m", scratch / "gpt2-124m"]


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--checkpoint", nargs="+", type=Path, default=[], help="folders to serve, one after another")
    parser.add_argument("--versus", metavar="URL", help="a running server of the same model to compare with")
    parser.add_argument("--versus-model", help="its model's name; the first that it lists when not given")
    parser.add_argument("--rounds", type=int, default=3, help="pairs of runs of each load, with --versus")
    parser.add_argument("--concurrency", nargs="*", type=int, default=[1, 8, 32, 64])
    parser.add_argument("--prompt-concurrency", nargs="*", type=int, default=[1, 8], help="of the prompts alone")
    parser.add_argument("--temperature", type=float, default=0.0)
    parser.add_argument("--requests-per-worker", type=int, default=2)
    parser.add_argument("--serve-flags", default="", help="passed to minigpt-serve, as one string")
    arguments = parser.parse_args()
    if arguments.versus and len(arguments.checkpoint) != 1:
        sys.exit("--versus compares one model: give its folder with --checkpoint")
    return arguments


if __name__ == "__main__":
    main()
