"""Command lines: arguments to options, and the parser's own complaints to one line. Knows no setting."""

import contextlib
import io
import itertools
import re
from collections.abc import Sequence
from typing import TypeVar

import tyro

from server.config import ServerConfig
from server.errors import CannotStart

T = TypeVar("T")

PROGRAM = "minigpt-serve"
DESCRIPTION = """Serve checkpoints over an OpenAI-compatible HTTP API.

Answers are reproducible: the same request with the same seed gives the same tokens, whatever else the server is doing.

It logs "ready" once the models are loaded. GET /health/ready says the same to programs, GET /metrics the rest.
SIGTERM or Ctrl-C refuses new requests, lets open ones finish, and exits with 0.

Examples:

  minigpt-serve
  minigpt-serve --model chars=checkpoints/shakespeare-char --port 9000
  MINIGPT_API_KEY=secret minigpt-serve --host 0.0.0.0 --log-format json
"""


def parse_arguments(arguments: Sequence[str]) -> ServerConfig:
    """Raises CannotStart with a one-line message; prints the help and raises SystemExit for --help."""
    return parse_options(tyro.conf.OmitArgPrefixes[ServerConfig], PROGRAM, DESCRIPTION, arguments)


def parse_options(options: type[T], program: str, description: str, arguments: Sequence[str] | None) -> T:
    """A dataclass from a command line (the process's own for None). Raises as `parse_arguments` does."""
    complaint = io.StringIO()
    try:
        with contextlib.redirect_stderr(complaint):
            return tyro.cli(options, prog=program, description=description, args=arguments)
    except SystemExit as error:
        if error.code in (0, None):
            raise
        raise CannotStart(_one_line(complaint.getvalue())) from None


def _one_line(text: str) -> str:
    """The parser draws a box, of lines or of hyphens: a title, what is wrong, where to find help. Keep the middle."""
    lines = [line.strip("│ ") for line in re.sub(r"\x1b\[[0-9;]*m", "", text).splitlines()]
    without_title = itertools.dropwhile(lambda line: not line.startswith(("╭", "---")), lines)
    said = itertools.takewhile(lambda line: not line.startswith(("For full help", "Argument helptext")), without_title)
    message = " ".join(line for line in said if line.strip("─-") and line[0] not in "╭╰")
    return _as_flag(message) or "bad arguments; see --help"


def _as_flag(message: str) -> str:
    """What a group of settings says of itself ("Error parsing engine: max_running is 0; it must ..."), in the form that
    all refusals have: the flag, the value, the limit."""
    found = re.fullmatch(r"Error parsing [\w.{}]+: (\w+) is (.*?); it (must .*)", message)
    return f"--{found[1].replace('_', '-')} {found[2]}: {found[3]}" if found else message
