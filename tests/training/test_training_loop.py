"""The loop: learning, accumulation, resumption, limits, and what it leaves in the run's folder."""

import io
import json
import math
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from training_runs import (
    TINY,
    TINY_GPT2,
    TINY_MOE,
    fresh_model,
    make_trainer,
    run_quietly,
    tiny_run,
    weights,
    with_length,
    write_text,
)

from model.checkpoint import load_checkpoint
from model.config import ModelConfig
from model.tokenizer import Tokenizer
from training.config import OptimizerOptions, SampleOptions, TrainingError
from training.dataset import cut
from training.evaluate import validate
from training.log import Record, number, read_log
from training.loop import Trainer
from training.parallel import Alone
from training.progress import Nobody, Progress
from training.run import train
from training.sample import sample_text

TIMED = ("seconds", "tokens_per_second")


def untimed(records: list[Record]) -> list[Record]:
    return [{name: value for name, value in record.items() if name not in TIMED} for record in records]


@pytest.mark.parametrize("model", [TINY, TINY_GPT2, TINY_MOE])
def test_the_loss_goes_down_on_a_tiny_text(model: ModelConfig, tmp_path: Path) -> None:
    config = tiny_run(write_text(tmp_path), tmp_path / "run", model, max_steps=60)
    assert run_quietly(replace(config, dropout=0.0, optimizer=OptimizerOptions(learning_rate=0.01)))
    records = read_log(tmp_path / "run" / "log.jsonl")
    losses = [number(record, "validation_loss") for record in records if record["kind"] == "evaluation"]
    assert len(losses) == 3
    assert losses == sorted(losses, reverse=True)
    assert losses[-1] < 1.5 < math.log(30)


def test_a_run_leaves_a_checkpoint_with_its_tokenizer_and_the_reported_loss(tmp_path: Path) -> None:
    config = tiny_run(write_text(tmp_path), tmp_path / "run")
    assert run_quietly(config)
    folder = tmp_path / "run" / "checkpoint"
    model = load_checkpoint(folder, torch.float32, torch.device("cpu"))
    tokenizer = Tokenizer.load(folder)
    assert tokenizer.decode(tokenizer.encode("ANN:\n")) == "ANN:\n"
    trainer = make_trainer(config)
    trainer.objective.model = model
    records = read_log(tmp_path / "run" / "log.jsonl")
    best = min(number(record, "validation_loss") for record in records if record["kind"] == "evaluation")
    assert validate(trainer.objective, trainer.material.validation, 4, Alone()).loss == pytest.approx(best, abs=1e-6)
    assert (tmp_path / "run" / "loss.png").read_bytes().startswith(b"\x89PNG")


def test_the_checkpoint_is_the_best_not_the_last(tmp_path: Path) -> None:
    config = tiny_run(write_text(tmp_path), tmp_path / "run", max_steps=12)
    # A rate that grows without decay until it destroys what was learned.
    wild = OptimizerOptions(matrices="adamw", learning_rate=1.0)
    schedule = replace(config.schedule, warmup_fraction=0.99)
    run_quietly(replace(config, optimizer=wild, schedule=schedule, dropout=0.0))
    evaluations = [record for record in read_log(tmp_path / "run" / "log.jsonl") if record["kind"] == "evaluation"]
    losses = [number(record, "validation_loss") for record in evaluations]
    assert losses[-1] > min(losses), "the rates above were meant to spoil the end"
    assert [record["is_best"] for record in evaluations] == [
        loss == min(losses[: n + 1]) for n, loss in enumerate(losses)
    ]
    saved = load_checkpoint(tmp_path / "run" / "checkpoint", torch.float32, torch.device("cpu"))
    last = weights(tmp_path / "run" / "state.pt")
    assert not torch.equal(saved.embedding.weight, last["embedding.weight"])


@pytest.mark.parametrize("model", [TINY, TINY_MOE])
def test_accumulated_micro_batches_equal_the_big_batch(model: ModelConfig, tmp_path: Path) -> None:
    config = replace(tiny_run(write_text(tmp_path), tmp_path / "run", model), dropout=0.0)
    # The router losses are not linear in the batch: Mixtral's are defined per forward pass.
    config = replace(config, loss=replace(config.loss, balance=0.0, router_z=0.0))
    big, small = make_trainer(config), make_trainer(with_length(config, micro_batch_size=1))
    for trainer in (big, small):
        for batch in trainer.micro_batches():
            trainer.accumulate(batch)
    gradients = zip(big.model.parameters(), small.model.parameters(), strict=True)
    for one, other in gradients:
        assert one.grad is not None
        torch.testing.assert_close(one.grad, other.grad, atol=1e-6, rtol=1e-4)


@pytest.mark.parametrize("stop_after", [1, 4, 5, 11])
@pytest.mark.parametrize("matrices", ["muon", "adamw"])
def test_a_resumed_run_equals_an_uninterrupted_one_bit_for_bit(stop_after: int, matrices: str, tmp_path: Path) -> None:
    text = write_text(tmp_path)
    options = OptimizerOptions(matrices="muon" if matrices == "muon" else "adamw")
    whole = replace(tiny_run(text, tmp_path / "whole"), optimizer=options)
    parts = replace(whole, out=tmp_path / "parts")
    assert run_quietly(whole)
    assert not run_quietly(parts, stop_after=stop_after)
    assert run_quietly(replace(parts, resume=True))
    expected, resumed = (weights(config.out / "state.pt") for config in (whole, parts))
    assert expected.keys() == resumed.keys()
    assert all(torch.equal(expected[name], resumed[name]) for name in expected)
    logs = [untimed(read_log(config.out / "log.jsonl")) for config in (whole, parts)]
    assert logs[0] == logs[1]


def test_a_crash_after_the_last_saved_state_changes_nothing(tmp_path: Path) -> None:
    text = write_text(tmp_path)
    whole, crashed = tiny_run(text, tmp_path / "whole", TINY_MOE), tiny_run(text, tmp_path / "crashed", TINY_MOE)
    run_quietly(whole)

    def crash() -> Iterator[bool]:
        yield from [False] * 6
        raise KeyboardInterrupt  # six steps in, two after the evaluation that saved

    answers = crash()
    with pytest.raises(KeyboardInterrupt):
        train(crashed, Alone(), io.StringIO(), lambda: next(answers))
    assert len(read_log(tmp_path / "crashed" / "log.jsonl")) == 8
    assert run_quietly(replace(crashed, resume=True))
    expected, resumed = weights(tmp_path / "whole" / "state.pt"), weights(tmp_path / "crashed" / "state.pt")
    assert all(torch.equal(expected[name], resumed[name]) for name in expected)
    assert untimed(read_log(whole.out / "log.jsonl")) == untimed(read_log(crashed.out / "log.jsonl"))


def test_another_seed_or_no_dropout_gives_other_weights(tmp_path: Path) -> None:
    text = write_text(tmp_path)
    configs = [tiny_run(text, tmp_path / str(number), max_steps=3) for number in range(3)]
    configs[1] = replace(configs[1], seed=1)
    configs[2] = replace(configs[2], dropout=0.0)
    for config in configs:
        run_quietly(config)
    states = [weights(config.out / "state.pt")["layers.0.attention.qkv.weight"] for config in configs]
    assert not torch.equal(states[0], states[1])
    assert not torch.equal(states[0], states[2])


def test_a_run_by_seconds_ends_at_its_limit_and_does_not_count_evaluations(tmp_path: Path) -> None:
    config = with_length(tiny_run(write_text(tmp_path), tmp_path / "run"), max_steps=None, max_seconds=10.0)
    ticks = iter(range(1_000_000))
    trainer = make_trainer(config)
    trainer.clock = lambda: float(next(ticks))  # each step takes one second
    assert trainer.run(Nobody())
    assert (trainer.progress.step, trainer.progress.seconds) == (10, 10.0)
    assert trainer.progress.num_evaluations == 3


def test_evaluations_fall_on_the_same_steps_however_the_run_is_cut() -> None:
    length = with_length(tiny_run(Path("x"), Path("y")), max_steps=10, num_evaluations=3).length
    due = [Progress(step=step).evaluations_due(length) for step in range(12)]
    assert due == [0, 0, 0, 0, 1, 1, 1, 2, 2, 2, 3, 3]


def test_gradients_that_are_not_finite_end_the_run_with_one_line(tmp_path: Path) -> None:
    config = tiny_run(write_text(tmp_path), tmp_path / "run")
    trainer = make_trainer(config)
    trainer.model.embedding.weight.data.fill_(float("nan"))
    with pytest.raises(TrainingError, match="norm is nan in step 0"):
        trainer.run(Nobody())


def test_a_folder_with_a_run_is_refused_unless_resumed(tmp_path: Path) -> None:
    config = tiny_run(write_text(tmp_path), tmp_path / "run", max_steps=3)
    with pytest.raises(TrainingError, match="holds no run to resume"):
        run_quietly(replace(config, resume=True))
    run_quietly(config)
    before = (tmp_path / "run" / "state.pt").read_bytes()
    with pytest.raises(TrainingError, match="holds a run already"):
        run_quietly(config)
    assert (tmp_path / "run" / "state.pt").read_bytes() == before


def test_resuming_with_another_setting_or_text_is_refused_by_name(tmp_path: Path) -> None:
    text = write_text(tmp_path)
    config = tiny_run(text, tmp_path / "run")
    run_quietly(config, stop_after=2)
    for changed, message in (
        (replace(config, dropout=0.2), "dropout is 0.2; the run to resume has 0.1"),
        (with_length(config, batch_size=8), "length.batch_size is 8; the run to resume has 4"),
    ):
        with pytest.raises(TrainingError, match=message):
            run_quietly(replace(changed, resume=True))
    text.write_text(text.read_text().replace("BOB", "BEN"))
    with pytest.raises(TrainingError, match="corpus_sha256"):
        run_quietly(replace(config, resume=True))


def test_the_recipe_says_what_was_trained_on_what(tmp_path: Path) -> None:
    config = tiny_run(write_text(tmp_path), tmp_path / "run", max_steps=3)
    run_quietly(config)
    recipe = json.loads((tmp_path / "run" / "recipe.json").read_text())
    trainer = make_trainer(config)
    assert recipe["config"]["length"]["batch_size"] == 4
    assert recipe["num_parameters"] == sum(parameter.numel() for parameter in trainer.model.parameters())
    assert recipe["num_training_tokens"] == len(trainer.material.training)
    assert recipe["corpus_sha256"] == trainer.material.corpus_sha256


def test_a_batch_that_workers_cannot_share_is_refused(tmp_path: Path) -> None:
    config = tiny_run(write_text(tmp_path), tmp_path / "run")
    trainer = make_trainer(config)
    three = Alone()
    three.size = 3
    with pytest.raises(TrainingError, match="must be a multiple of the 3 workers"):
        Trainer(config, trainer.material, trainer.model, three)


def test_experts_are_logged_as_shares_that_add_up(tmp_path: Path) -> None:
    config = tiny_run(write_text(tmp_path), tmp_path / "run", TINY_MOE, max_steps=3)
    run_quietly(config)
    record = read_log(tmp_path / "run" / "log.jsonl")[0]
    load = record["expert_load"]
    assert isinstance(load, list)
    assert len(load) == TINY_MOE.num_layers
    assert all(sum(layer) == pytest.approx(1.0, abs=1e-3) for layer in load)
    assert number(record, "balance_loss") > 0.9


def test_samples_are_repeatable_and_stay_within_the_context(tmp_path: Path) -> None:
    trainer = make_trainer(tiny_run(write_text(tmp_path), tmp_path / "run"))
    tokenizer = trainer.material.tokenizer
    model = fresh_model(trainer.model.config)
    options = SampleOptions(prompt="ANN:\n", max_tokens=100)
    texts = [sample_text(model, tokenizer, options, seed) for seed in (1, 1, 2)]
    assert texts[0] == texts[1] != texts[2]
    assert model.training


@pytest.mark.parametrize("micro", [None, 1, 2])
def test_each_step_takes_the_windows_after_those_of_the_last(micro: int | None, tmp_path: Path) -> None:
    config = tiny_run(write_text(tmp_path), tmp_path / "run")
    trainer = make_trainer(with_length(config, micro_batch_size=micro))
    seen = []
    for step in range(3):
        trainer.progress.step = step
        seen += [row for batch in trainer.micro_batches() for row in batch.inputs.tolist()]
    starts = trainer.order.starts(0, 12)
    assert seen == cut(trainer.material.training, starts, trainer.model.config.context_length).inputs.tolist()
