"""docs/decoding.md, as its readers will use it: every command is run, and every stage of the sampler is told of."""

import json
import re
import subprocess
from pathlib import Path

import pytest

from server.engine.sampling.order import SAMPLERS

ROOT = Path(__file__).resolve().parents[2]
GUIDE = (ROOT / "docs" / "decoding.md").read_text()
COMMANDS = [
    command
    for block in re.findall(r"^```sh\n(.*?)^```", GUIDE, re.MULTILINE | re.DOTALL)
    for command in re.split(r"^(?=curl )", block, flags=re.MULTILINE)
    if command.strip()
]


def names(command: str) -> str:
    return " ".join(re.findall(r'"(\w+)":', command))[-80:]


@pytest.mark.parametrize("command", COMMANDS, ids=names)
def test_the_guides_commands_run_as_they_stand(command: str, shipped_url: str) -> None:
    assert "localhost:8000" in command
    shell = ["bash", "-c", command.replace("localhost:8000", shipped_url.removeprefix("http://"))]
    done = subprocess.run(shell, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout
    for answer in answers(done.stdout):
        assert "error" not in json.loads(answer), answer


def answers(output: str) -> list[str]:
    """A JSON answer, or the events of a stream."""
    if output.startswith("{"):
        return [output]
    events = re.findall(r"^data: (.*)$", output, re.MULTILINE)
    assert events.pop() == "[DONE]"
    return events


@pytest.mark.parametrize("stage", SAMPLERS)
def test_the_guide_tells_of_every_stage(stage: str) -> None:
    prose = re.sub(r"^```sh\n.*?^```", "", GUIDE, flags=re.MULTILINE | re.DOTALL)
    fields = {"dry_sequence_breakers" if name == "dry_breakers" else name for name in SAMPLERS[stage].parameters}
    assert [name for name in fields if not re.search(rf"\b{name}\b", prose)] == []
