"""The command line: the Config classes turned into flags, and every refusal turned into one line."""

import contextlib
import io
import re
from collections.abc import Sequence

import tyro

from loadtest.config import Config
from loadtest.refusal import ConfigError

PROGRAM = "minigpt-loadtest"
DESCRIPTION = """Measure any OpenAI-compatible server under load.

Closed loop, 8 workers, 200 requests:
  minigpt-loadtest --url http://127.0.0.1:8000 --concurrency 8 --num-requests 200

Open loop, 20 requests a second for a minute, lengths drawn, with limits to keep:
  minigpt-loadtest --rate 20 --duration-seconds 60 --prompt-length uniform:4:16 \\
    --output-length lognormal:32:0.5:96 --goodput ttft:200 itl:20 e2e:5000

Latency against load, as a table, a JSON file and a plot:
  minigpt-loadtest --concurrency 1 8 32 --json sweep.json --plot sweep.png
  minigpt-loadtest --rate 40 --sweep --plot rates.png

Two servers in turn, with the ratios of each pair of runs:
  minigpt-loadtest --url http://127.0.0.1:8000 --versus http://127.0.0.1:8001 --concurrency 16

Exit code: 0 when every request was answered, 1 when any failed (see --allow-errors), 2 for a refused setting."""


def parse(arguments: Sequence[str]) -> Config:
    """The configuration. Raises ConfigError for a refused setting, SystemExit(0) after --help."""
    complaint = io.StringIO()
    try:
        with contextlib.redirect_stderr(complaint):
            return tyro.cli(
                Config,
                prog=PROGRAM,
                description=DESCRIPTION,
                args=arguments,
                config=(tyro.conf.OmitArgPrefixes, tyro.conf.FlagCreatePairsOff),
            )
    except SystemExit as leaving:
        if leaving.code:
            raise ConfigError(first_paragraph(complaint.getvalue())) from leaving
        raise


def first_paragraph(boxed: str) -> str:
    """The first paragraph of a framed message, on one line, without its frame."""
    words: list[str] = []
    for line in boxed.splitlines():
        inner = line.strip(" │\n")
        if inner.startswith("╭"):
            continue
        if not inner or re.fullmatch(r"[─╰╯ ]+", inner):
            break
        words.append(inner)
    return " ".join(words)
