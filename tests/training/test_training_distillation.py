"""Distillation: the loss, students that learn a target, resumption, and what is refused."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from training_runs import (
    TINY,
    TINY_GPT2,
    TINY_MOE,
    fresh_model,
    run_quietly,
    tiny_run,
    weights,
    with_length,
    write_text,
)

from model.checkpoint import load_checkpoint, save_checkpoint
from model.config import ModelConfig
from model.files import read_json
from model.reference import sequence_logits
from model.tokenizer import Tokenizer, train_char_tokenizer
from training.config import DistillOptions, LossOptions, TrainConfig, TrainingError
from training.dataset import Batch
from training.distill import start_from_target
from training.log import Record, number, read_log
from training.losses import agreement, distillation_loss
from training.objective import Objective

CPU = torch.device("cpu")
TIMED = ("seconds", "tokens_per_second")


@pytest.fixture(scope="module")
def text(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_text(tmp_path_factory.mktemp("text"))


@pytest.fixture(scope="module")
def target(text: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The checkpoint of a target that has learned something."""
    folder = tmp_path_factory.mktemp("target")
    config = replace(tiny_run(text, folder / "run", max_steps=40), dropout=0.0)
    assert run_quietly(with_length(config, num_evaluations=1))
    return folder / "run" / "checkpoint"


def student_run(text: Path, target: Path, out: Path, max_steps: int = 6, num_evaluations: int = 2) -> TrainConfig:
    """A one-layer student of `target`."""
    options = DistillOptions(target, num_tokens=600, num_validation_tokens=200, prompt_length=4)
    config = replace(tiny_run(text, out, replace(TINY, num_layers=1), max_steps), distill=options)
    return with_length(config, num_evaluations=num_evaluations)


def evaluations(out: Path) -> list[Record]:
    return [record for record in read_log(out / "log.jsonl") if record["kind"] == "evaluation"]


def test_the_distillation_loss_equals_the_divergence_in_float64() -> None:
    generator = torch.Generator().manual_seed(1)
    student, target = (5 * torch.randn(3, 4, 11, generator=generator) for _ in range(2))
    chances = []
    for logits in (student, target):
        powers = np.exp(logits.double().numpy())
        chances.append(powers / powers.sum(-1, keepdims=True))
    ours, theirs = chances
    expected = (theirs * np.log(theirs / ours)).sum(-1).mean()
    assert distillation_loss(student, target).item() == pytest.approx(expected, rel=1e-5)
    assert agreement(student, target).item() == pytest.approx((ours.argmax(-1) == theirs.argmax(-1)).mean())


def test_the_distillation_loss_pulls_every_probability_to_the_targets() -> None:
    generator = torch.Generator().manual_seed(2)
    student, target = (torch.randn(6, 5, generator=generator) for _ in range(2))
    student.requires_grad_()
    distillation_loss(student, target).backward()  # type: ignore[no-untyped-call]
    torch.testing.assert_close(student.grad, (student.detach().softmax(-1) - target.softmax(-1)) / len(student))


@pytest.mark.parametrize("config", [TINY, TINY_GPT2, TINY_MOE])
def test_a_student_equal_to_its_target_has_no_loss_and_full_agreement(config: ModelConfig) -> None:
    tokens = torch.arange(32).view(2, 16)
    batch = Batch(tokens, tokens)
    twins = Objective(fresh_model(config), LossOptions(), torch.float32, fresh_model(config)).losses(batch)
    strangers = Objective(fresh_model(config, 1), LossOptions(), torch.float32, fresh_model(config)).losses(batch)
    assert twins.agreement is not None
    assert (twins.tokens.item(), twins.agreement.item()) == (pytest.approx(0.0, abs=1e-6), 1.0)
    assert strangers.tokens.item() > 1e-3


def test_a_student_learns_its_target_and_leaves_it_alone(text: Path, target: Path, tmp_path: Path) -> None:
    before = {file.name: file.read_bytes() for file in target.iterdir()}
    assert run_quietly(
        replace(student_run(text, target, tmp_path / "run", max_steps=60, num_evaluations=3), dropout=0.0)
    )
    losses, agreements = (
        [number(record, field) for record in evaluations(tmp_path / "run")]
        for field in ("validation_loss", "validation_agreement")
    )
    assert losses == sorted(losses, reverse=True)
    assert losses[-1] < losses[0] / 2
    assert agreements[-1] > agreements[0]
    assert {file.name: file.read_bytes() for file in target.iterdir()} == before
    student = load_checkpoint(tmp_path / "run" / "checkpoint", torch.float32, CPU)
    assert (student.config.num_layers, student.config.vocab_size) == (1, Tokenizer.load(target).vocab_size)


def test_kept_logits_teach_what_the_target_itself_does(text: Path, target: Path, tmp_path: Path) -> None:
    """The windows differ, so the steps do; what is learned does not. Resumed, it reads the same logits again."""
    config = student_run(text, target, tmp_path / "run", max_steps=60, num_evaluations=3)
    config = replace(config, dropout=0.0, distill=replace(config.distill, keep_logits=True))
    assert not run_quietly(config, stop_after=30)
    assert run_quietly(replace(config, resume=True))
    losses = [number(record, "validation_loss") for record in evaluations(config.out)]
    assert losses == sorted(losses, reverse=True)
    assert losses[-1] < losses[0] / 2


def test_a_batch_with_the_targets_logits_has_the_loss_of_asking_it() -> None:
    student, target = fresh_model(TINY, 1), fresh_model(TINY)
    inputs = torch.arange(30).view(2, 15)
    with torch.no_grad():
        answers = torch.stack([sequence_logits(target, row) for row in inputs.tolist()])
    asked, told = (
        Objective(student, LossOptions(), torch.float32, target).losses(Batch(inputs, inputs, logits)).tokens.item()
        for logits in (None, answers)
    )
    assert told == pytest.approx(asked, rel=1e-4)


def test_a_run_without_a_target_reports_no_agreement(target: Path) -> None:
    assert all("validation_agreement" not in record for record in evaluations(target.parent))
    assert "distillation" not in read_json(target.parent / "recipe.json")


@pytest.mark.parametrize("stop_after", [1, 4])  # before the first evaluation and after it
def test_a_resumed_distillation_equals_an_uninterrupted_one_bit_for_bit(
    stop_after: int, text: Path, target: Path, tmp_path: Path
) -> None:
    whole, parts = (student_run(text, target, tmp_path / name) for name in ("whole", "parts"))
    assert run_quietly(whole)
    assert not run_quietly(parts, stop_after=stop_after)
    assert run_quietly(replace(parts, resume=True))
    expected, resumed = (weights(config.out / "state.pt") for config in (whole, parts))
    assert all(torch.equal(expected[name], resumed[name]) for name in expected)
    logs = [
        [{name: value for name, value in record.items() if name not in TIMED} for record in read_log(out / "log.jsonl")]
        for out in (whole.out, parts.out)
    ]
    assert logs[0] == logs[1]
    recipes = [read_json(out / "recipe.json") for out in (whole.out, parts.out)]
    assert recipes[0]["distillation"] == recipes[1]["distillation"]


def test_another_target_or_a_lost_text_is_refused_when_resuming(text: Path, target: Path, tmp_path: Path) -> None:
    mine = tmp_path / "target"
    Tokenizer.load(target).save(mine)
    trained = load_checkpoint(target, torch.float32, CPU)
    save_checkpoint(trained, mine)
    config = student_run(text, mine, tmp_path / "run")
    assert not run_quietly(config, stop_after=1)
    save_checkpoint(fresh_model(trained.config), mine)
    with pytest.raises(TrainingError, match=r"^distillation\.target_weights_sha256 is .*; the run to resume has "):
        run_quietly(replace(config, resume=True))
    (config.out / "written.npz").unlink()
    with pytest.raises(TrainingError, match=r"written\.npz does not exist"):
        run_quietly(replace(config, resume=True))


def with_another_size(target: Path, folder: Path) -> None:
    train_char_tokenizer("abc").save(folder)


def with_another_letter(target: Path, folder: Path) -> None:
    tokenizer = folder / "tokenizer.json"
    Tokenizer.load(target).save(folder)
    tokenizer.write_text(tokenizer.read_text().replace('"A"', '"%"'))


def with_padded_rows(target: Path, folder: Path) -> None:
    Tokenizer.load(target).save(folder)
    config = load_checkpoint(target, torch.float32, CPU).config
    save_checkpoint(fresh_model(replace(config, vocab_size=config.vocab_size + 8)), folder)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (with_another_size, r"must have the run's vocabulary of \d+ tokens, not 260"),
        (with_another_letter, r"must have the run's tokenizer: token \d+ is b'%' there and b'A' here"),
        (with_padded_rows, r"must have as many rows as tokens: \d+, not \d+"),
    ],
)
def test_a_target_with_other_tokens_is_refused_in_one_line(
    make: Callable[[Path, Path], None], message: str, text: Path, target: Path, tmp_path: Path
) -> None:
    make(target, tmp_path / "other")
    with pytest.raises(TrainingError, match=rf"^distill\.target is {tmp_path}/other; it {message}$"):
        run_quietly(student_run(text, tmp_path / "other", tmp_path / "run"))


def test_a_context_longer_than_the_targets_is_refused(text: Path, target: Path, tmp_path: Path) -> None:
    config = student_run(text, target, tmp_path / "run")
    with pytest.raises(TrainingError, match=r"^model\.context_length is 32; it must be at most the target's 16$"):
        run_quietly(replace(config, model=replace(config.model, context_length=32)))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"num_tokens": 0}, r"distill\.num_tokens is 0; it must be from 1"),
        ({"prompt_length": 0}, r"distill\.prompt_length is 0; it must be at least 1"),
        ({"temperatures": ()}, r"distill\.temperatures is \(\); it must not be empty"),
        ({"temperatures": (0.5, float("nan"))}, r"distill\.temperatures is .* must each be from 0 to 10"),
    ],
)
def test_distillation_settings_have_limits(options: dict[str, object], message: str) -> None:
    with pytest.raises(TrainingError, match=message):
        DistillOptions(**options)  # type: ignore[arg-type]


def test_a_prompt_as_long_as_the_context_is_refused(text: Path, target: Path, tmp_path: Path) -> None:
    config = student_run(text, target, tmp_path / "run")
    with pytest.raises(TrainingError, match=r"distill\.prompt_length is 16; it must be below 16"):
        replace(config, distill=replace(config.distill, prompt_length=16))


@pytest.mark.parametrize(("num_layers", "sources"), [(1, [0]), (2, [0, 3]), (3, [0, 2, 3]), (4, [0, 1, 2, 3])])
def test_a_student_can_start_with_layers_of_its_target(num_layers: int, sources: list[int]) -> None:
    target = fresh_model(replace(TINY_GPT2, num_layers=4))
    student = fresh_model(replace(TINY_GPT2, num_layers=num_layers), seed=1)
    start_from_target(student, target)
    theirs = dict(target.named_parameters())
    for name, parameter in student.named_parameters():
        for layer, source in enumerate(sources):
            if name.startswith(f"layers.{layer}."):
                name = f"layers.{source}." + name.split(".", 2)[2]
                break
        assert torch.equal(parameter, theirs[name]), name


def test_a_student_of_another_width_cannot_start_from_its_target() -> None:
    student = fresh_model(replace(TINY, num_layers=1, hidden_size=24))
    with pytest.raises(TrainingError, match=r"start_from_target is True; .* embedding\.weight differs"):
        start_from_target(student, fresh_model(TINY))
