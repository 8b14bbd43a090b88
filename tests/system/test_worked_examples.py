"""The worked examples of docs/compare.md and docs/trace.md: their commands are run, and answer with the fields shown.

Numbers and texts are one machine's, so only their places are compared.
"""

import json
import re
import subprocess
from pathlib import Path
from typing import Any

import pytest

DOCS = Path(__file__).resolve().parents[2] / "docs"


def commands(page: str) -> list[str]:
    return re.findall(r"^```\n(curl .*?)^```", (DOCS / page).read_text(), re.MULTILINE | re.DOTALL)


def shown(page: str) -> object:
    """The first answer that the page shows."""
    blocks = re.findall(r"^```json\n(.*?)^```", (DOCS / page).read_text(), re.MULTILINE | re.DOTALL)
    return json.loads(blocks[0])


def answer(command: str, url: str) -> dict[str, Any]:
    assert "http://127.0.0.1:8000/" in command
    shell = ["bash", "-c", command.replace("http://127.0.0.1:8000", url)]
    done = subprocess.run(shell, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stderr
    answered: dict[str, Any] = json.loads(done.stdout)
    assert "error" not in answered, answered
    return answered


def absent(shown: object, answered: object, place: str = "") -> list[str]:
    """Where `shown` has a field or an entry that `answered` has not; "..." stands for anything."""
    if isinstance(shown, dict):
        inside = answered if isinstance(answered, dict) else {}
        missing = [f"{place}.{name}" for name in shown if name != "..." and name not in inside]
        pairs = [(shown[name], inside[name], f"{place}.{name}") for name in shown if name in inside]
    elif isinstance(shown, list):
        inside = answered if isinstance(answered, list) else []
        wanted = [entry for entry in shown if entry != "..."]
        missing = [f"{place}[{index}]" for index in range(len(inside), len(wanted))]
        pairs = [(entry, inside[i], f"{place}[{i}]") for i, entry in enumerate(wanted[: len(inside)])]
    else:
        return [] if type(shown) is type(answered) else [f"{place} is {answered!r}"]
    return missing + [gap for pair in pairs for gap in absent(*pair)]


def test_a_comparison_and_the_fork_of_it_answer_as_documented(shipped_url: str) -> None:
    comparison, fork = commands("compare.md")
    compared = answer(comparison, shipped_url)
    assert absent(shown("compare.md"), compared) == []
    forked = answer(re.sub(r"compare-[0-9a-f]{32}", compared["id"], fork), shipped_url)
    assert forked["choices"][0]["text"] == compared["strategies"][1]["text"][12:]  # a token is a character here


def test_a_trace_has_the_fields_documented(shipped_url: str) -> None:
    [command] = commands("trace.md")
    assert absent(shown("trace.md"), answer(command, shipped_url)["choices"][0]["trace"][0]) == []


@pytest.mark.parametrize("answered", [{"a": [1]}, {"a": [1, "x"]}, {"a": 1}, {}])
def test_an_answer_without_what_is_shown_is_noticed(answered: object) -> None:
    assert absent({"a": [1, 2, "..."], "...": {}}, answered)
