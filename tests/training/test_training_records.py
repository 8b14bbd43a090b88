"""Logs, plots, reports, saved states and the manifest."""

import io
import json
import shutil
from pathlib import Path

import pytest
import torch
from training_runs import TINY, TINY_MOE, fresh_model, run_quietly, tiny_run, with_length, write_text

from training.config import OptimizerOptions, TrainingError
from training.log import RunLog, read_log
from training.manifest import Publish, problems, publish
from training.manifest import run as run_manifest
from training.optimizers import Optimizers
from training.plots import plot_curves, smoothed
from training.progress import Progress
from training.report import ReportOptions, report
from training.state import load_state, save_state


def test_a_log_is_cut_back_to_a_step_and_loses_a_half_written_line(tmp_path: Path) -> None:
    log = RunLog(tmp_path / "log.jsonl")
    log.truncate(0)
    records = [{"kind": "step", "step": step, "loss": step / 3} for step in (10, 20, 30)]
    for record in records:
        log.write(record)
    with log.path.open("a") as file:
        file.write('{"kind": "step", "st')
    assert read_log(log.path) == records
    log.truncate(20)
    assert read_log(log.path) == records[:2]
    log.write(records[2])
    assert read_log(log.path) == records


def test_a_damaged_or_missing_log_is_refused_by_name(tmp_path: Path) -> None:
    (tmp_path / "log.jsonl").write_text('{"kind": "st\n{"kind": "step", "step": 1}\n')
    with pytest.raises(TrainingError, match="line 1: is not JSON"):
        read_log(tmp_path / "log.jsonl")
    with pytest.raises(TrainingError, match=r"is .* the folder of a run"):
        read_log(tmp_path / "other" / "log.jsonl")


def test_smoothing_starts_at_the_first_value_and_follows() -> None:
    assert smoothed([]) == []
    assert smoothed([4.0, 4.0, 4.0]) == pytest.approx([4.0] * 3)
    assert smoothed([0.0] + [1.0] * 200)[-1] == pytest.approx(1.0, abs=1e-6)


def test_a_plot_of_runs_is_a_png_and_replaces_the_old_one(tmp_path: Path) -> None:
    records = [{"kind": "step", "step": 1, "seconds": 0.5, "loss": 2.0}]
    records += [{"kind": "evaluation", "step": 1, "seconds": 0.5, "validation_loss": 2.1}]
    (tmp_path / "loss.png").write_text("old")
    plot_curves({"a": records, "b": records}, tmp_path / "loss.png")
    assert (tmp_path / "loss.png").read_bytes().startswith(b"\x89PNG")
    assert [path.name for path in tmp_path.iterdir()] == ["loss.png"]


def state_of(folder: Path, seed: int) -> Path:
    network = fresh_model(TINY_MOE, seed)
    save_state(folder / "state.pt", Progress(step=seed), network, Optimizers(network, OptimizerOptions()))
    return folder / "state.pt"


def test_a_crash_while_writing_the_state_leaves_the_old_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = state_of(tmp_path, seed=1)
    before = path.read_bytes()

    def fail(descriptor: int) -> None:
        raise OSError("the disk is full")

    monkeypatch.setattr("os.fsync", fail)  # after writing, before replacing
    with pytest.raises(OSError, match="disk is full"):
        state_of(tmp_path, seed=2)
    assert path.read_bytes() == before
    assert [file.name for file in tmp_path.iterdir()] == ["state.pt"]


def test_a_state_comes_back_whole_and_a_missing_one_is_refused(tmp_path: Path) -> None:
    path = state_of(tmp_path, seed=3)
    network = fresh_model(TINY_MOE, seed=4)
    progress = load_state(path, network, Optimizers(network, OptimizerOptions()))
    assert progress == Progress(step=3)
    expected = fresh_model(TINY_MOE, seed=3).state_dict()
    assert all(torch.equal(expected[name], tensor) for name, tensor in network.state_dict().items())
    with pytest.raises(TrainingError, match="nothing to resume"):
        load_state(tmp_path / "none.pt", network, Optimizers(network, OptimizerOptions()))


def test_a_report_compares_results_settings_and_curves(tmp_path: Path) -> None:
    text = write_text(tmp_path)
    for name, steps in (("short", 3), ("long", 6)):
        run_quietly(with_length(tiny_run(text, tmp_path / name), max_steps=steps))
    stream = io.StringIO()
    runs = (tmp_path / "short", tmp_path / "long")
    report(ReportOptions(runs, plot=tmp_path / "both.png", curve=True), stream)
    summary, differences, curve = stream.getvalue().split("\n\n")
    assert [line.split("|")[2].strip() for line in summary.splitlines()[2:]] == ["3", "6"]
    assert [line.split()[1] for line in differences.splitlines()[2:]] == ["length.max_steps"]
    assert len(curve.splitlines()) == 2 + 3 + 3
    assert (tmp_path / "both.png").read_bytes().startswith(b"\x89PNG")


def test_a_report_of_no_run_or_an_unfinished_one_is_refused(tmp_path: Path) -> None:
    with pytest.raises(TrainingError, match="must name at least one run"):
        ReportOptions(())
    with pytest.raises(TrainingError, match="does not exist"):
        report(ReportOptions((tmp_path,)), io.StringIO())
    run_quietly(tiny_run(write_text(tmp_path), tmp_path / "run"), stop_after=1)
    with pytest.raises(TrainingError, match="has not been evaluated yet"):
        report(ReportOptions((tmp_path / "run",)), io.StringIO())


def published(tmp_path: Path) -> Path:
    text = write_text(tmp_path)
    runs = []
    for name, shape in (("one", TINY), ("two", TINY_MOE)):
        run_quietly(tiny_run(text, tmp_path / "runs" / name, shape, max_steps=3))
        runs.append(tmp_path / "runs" / name)
    publish(Publish(tuple(runs), tmp_path / "checkpoints"))
    return tmp_path / "checkpoints"


def test_the_manifest_lists_what_was_published_and_finds_every_change(tmp_path: Path) -> None:
    folder = published(tmp_path)
    assert problems(folder) == []
    manifest = json.loads((folder / "MANIFEST.json").read_text())
    assert list(manifest) == ["one", "two"]
    assert manifest["two"]["recipe"]["config"]["model"]["num_experts"] == 4
    weights = folder / "one" / "model.safetensors"
    data = bytearray(weights.read_bytes())
    data[-1] ^= 1  # one bit of one weight
    weights.write_bytes(data)
    (folder / "two" / "tokenizer.json").unlink()
    (folder / "two" / "extra.bin").write_bytes(b"")
    assert problems(folder) == [
        "two/tokenizer.json: is missing",
        "two/extra.bin: is not listed",
        "one/model.safetensors: differs from what is listed",
    ]
    stream = io.StringIO()
    assert run_manifest(["verify", "--checkpoints", str(folder)], stream) == 1
    assert "one/model.safetensors: differs" in stream.getvalue()


def test_publishing_again_replaces_a_checkpoint_and_keeps_the_others(tmp_path: Path) -> None:
    folder = published(tmp_path)
    before = json.loads((folder / "MANIFEST.json").read_text())
    shutil.rmtree(tmp_path / "runs" / "one")
    run_quietly(tiny_run(tmp_path / "text.txt", tmp_path / "runs" / "one", TINY, max_steps=4))
    assert run_manifest(["publish", str(tmp_path / "runs" / "one"), "--checkpoints", str(folder)], io.StringIO()) == 0
    after = json.loads((folder / "MANIFEST.json").read_text())
    assert problems(folder) == []
    assert (after["two"], after["one"] != before["one"]) == (before["two"], True)


def test_a_run_without_a_checkpoint_or_with_too_large_a_one_is_not_published(tmp_path: Path) -> None:
    target = tmp_path / "checkpoints"
    with pytest.raises(TrainingError, match="holds no evaluated checkpoint"):
        publish(Publish((tmp_path,), target))
    weights = tmp_path / "run" / "checkpoint" / "model.safetensors"
    weights.parent.mkdir(parents=True)
    with weights.open("wb") as file:
        file.truncate(4_000_001)
    with pytest.raises(TrainingError, match="has 4000001 bytes; the limit is 4000000"):
        publish(Publish((tmp_path / "run",), target))
    assert not target.exists()
