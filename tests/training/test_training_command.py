"""The command line, in processes of its own: refusals, interruption, and two workers that equal one."""

import os
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from training_runs import run_quietly, tiny_run, weights, with_length, write_text

from training.__main__ import run
from training.config import TrainingError
from training.log import number, read_log

# Python and torch start several times here, which takes long where the cores are shared.
pytestmark = pytest.mark.timeout(400)

REPOSITORY = Path(__file__).parents[2]
# One thread each: the processes share two cores.
ENVIRONMENT = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(REPOSITORY)}
TINY_SMOKE = (
    *("--model.num-layers", "1", "--model.hidden-size", "16", "--model.head-dim", "8", "--model.context-length", "16"),
    *("--sample.max-tokens", "4", "--precision", "float32"),
)


def command(text: Path, out: Path, *more: str) -> list[str]:
    return ["smoke", "--data.path", str(text), "--out", str(out), *TINY_SMOKE, *more]


def minigpt_train(*arguments: str) -> subprocess.CompletedProcess[str]:
    whole = [sys.executable, "-m", "training", *arguments]
    return subprocess.run(whole, cwd=REPOSITORY, env=ENVIRONMENT, capture_output=True, text=True, timeout=200)


def test_a_bad_setting_ends_the_command_with_one_line(tmp_path: Path) -> None:
    done = minigpt_train(*command(tmp_path / "missing.txt", tmp_path / "run"))
    assert done.returncode == 2
    assert done.stderr == f"minigpt-train: {tmp_path / 'missing.txt'} cannot be read: No such file or directory\n"


@pytest.mark.parametrize("text", [None, "", "\xff", "too short for two windows"])
def test_refused_data_leaves_no_folder(tmp_path: Path, text: str | None) -> None:
    path = tmp_path / "text.txt"
    if text is not None:
        path.write_bytes(text.encode("latin-1"))
    with pytest.raises(TrainingError):
        run(command(path, tmp_path / "runs" / "mine"), {})
    assert not (tmp_path / "runs").exists()


def test_a_run_shortened_by_its_steps_alone_runs(tmp_path: Path) -> None:
    assert run(command(write_text(tmp_path), tmp_path / "run", "--length.max-steps", "2"), {}) == 0
    assert [record["step"] for record in read_log(tmp_path / "run" / "log.jsonl")] == [1, 2]


def test_the_help_names_the_other_commands(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as leaving:
        run(["--help"], {})
    assert leaving.value.code == 0
    shown = capsys.readouterr().out
    assert "minigpt-train report RUN" in shown
    assert "training.manifest" in shown


def test_an_interrupted_command_saves_and_its_resumption_equals_an_uninterrupted_run(tmp_path: Path) -> None:
    text = write_text(tmp_path)
    more = ("--length.max-steps", "300", "--length.log-interval", "1")
    process = subprocess.Popen(
        [sys.executable, "-m", "training", *command(text, tmp_path / "parts", *more)],
        cwd=REPOSITORY,
        env=ENVIRONMENT,
        stderr=subprocess.PIPE,
        text=True,
    )
    log = tmp_path / "parts" / "log.jsonl"
    deadline = time.monotonic() + 120
    while not (log.exists() and log.read_text().count("\n") >= 3):
        assert process.poll() is None, process.communicate()[1]
        assert time.monotonic() < deadline
        time.sleep(0.01)
    process.send_signal(signal.SIGINT)
    _, errors = process.communicate(timeout=120)
    assert process.returncode == 130, errors
    assert "go on with --resume" in errors
    stopped_at = read_log(log)[-1]["step"]
    assert stopped_at != 300
    assert run([*command(text, tmp_path / "parts", *more), "--resume"], {}) == 0
    assert run(command(text, tmp_path / "whole", *more), {}) == 0
    expected, resumed = (weights(tmp_path / name / "state.pt") for name in ("whole", "parts"))
    assert all(torch.equal(expected[name], resumed[name]) for name in expected)


def test_two_workers_equal_one_with_twice_the_accumulation(tmp_path: Path) -> None:
    text = write_text(tmp_path)
    more = ("--length.max-steps", "8", "--length.log-interval", "1", "--length.num-evaluations", "2")
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    done = subprocess.run(
        [*torchrun, "-m", "training", *command(text, tmp_path / "two", *more)],
        cwd=REPOSITORY,
        env=ENVIRONMENT,
        capture_output=True,
        text=True,
        timeout=200,
    )
    assert done.returncode == 0, done.stderr
    assert run(command(text, tmp_path / "one", *more, "--length.micro-batch-size", "4"), {}) == 0
    alone, shared = (weights(tmp_path / name / "state.pt") for name in ("one", "two"))
    for name, tensor in alone.items():
        torch.testing.assert_close(tensor, shared[name], atol=2e-3, rtol=0)
    losses = [
        [record.get("loss", record.get("validation_loss")) for record in read_log(tmp_path / name / "log.jsonl")]
        for name in ("one", "two")
    ]
    assert losses[0] == pytest.approx(losses[1], abs=1e-3)


def test_a_run_in_bfloat16_learns_as_well(tmp_path: Path) -> None:
    config = replace(tiny_run(write_text(tmp_path), tmp_path / "run"), precision="bfloat16", dropout=0.0)
    assert run_quietly(with_length(config, max_steps=30))
    records = [record for record in read_log(tmp_path / "run" / "log.jsonl") if record["kind"] == "evaluation"]
    losses = [number(record, "validation_loss") for record in records]
    assert losses == sorted(losses, reverse=True)
