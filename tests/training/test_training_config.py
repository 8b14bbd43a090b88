"""Settings outside their limits are refused on one line that names field, value and limit; presets are sound."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from training_runs import TINY

from model.config_json import config_json
from model.gpt import GPT
from training.config import (
    DataOptions,
    LengthOptions,
    LossOptions,
    OptimizerOptions,
    SampleOptions,
    ScheduleOptions,
    TrainConfig,
    TrainingError,
)
from training.manifest import MAX_WEIGHTS_BYTES
from training.presets import presets

NAN = float("nan")
REFUSED: list[tuple[Callable[[], object], str]] = [
    (lambda: DataOptions(validation_fraction=0.6), "data.validation_fraction is 0.6; it must be above 0 and at most 0"),
    (lambda: OptimizerOptions(learning_rate=0.0), "optimizer.learning_rate is 0.0; it must be above 0"),
    (lambda: OptimizerOptions(muon_learning_rate=NAN), "optimizer.muon_learning_rate is nan"),
    (lambda: OptimizerOptions(beta2=1.0), "optimizer.beta2 is 1.0; it must be at least 0 and below 1"),
    (lambda: OptimizerOptions(weight_decay=-0.1), "optimizer.weight_decay is -0.1"),
    (lambda: OptimizerOptions(max_grad_norm=-1.0), "optimizer.max_grad_norm is -1.0"),
    (lambda: ScheduleOptions(warmup_fraction=1.0), "schedule.warmup_fraction is 1.0"),
    (lambda: ScheduleOptions(final_fraction=1.5), "schedule.final_fraction is 1.5"),
    (lambda: LengthOptions(), r"length.\(max_steps, max_seconds\) is \(None, None\); it must be one limit"),
    (lambda: LengthOptions(max_steps=1, max_seconds=1.0), "it must be one limit, with None for the other"),
    (lambda: LengthOptions(max_steps=0), "length.max_steps is 0"),
    (lambda: LengthOptions(max_seconds=NAN), "length.max_seconds is nan"),
    (lambda: LengthOptions(max_steps=99, batch_size=0), "length.batch_size is 0"),
    (lambda: LengthOptions(max_steps=99, batch_size=6, micro_batch_size=4), "length.micro_batch_size is 4; it must di"),
    (lambda: LengthOptions(max_steps=5, num_evaluations=0), "length.num_evaluations is 0; it must be from 1 to 10000"),
    (lambda: LengthOptions(max_steps=99, log_interval=0), "length.log_interval is 0"),
    (lambda: LossOptions(balance=-1.0), "loss.balance is -1.0"),
    (lambda: SampleOptions(prompt=""), "sample.prompt is ''; it must not be empty"),
    (lambda: SampleOptions(temperature=0.0), "sample.temperature is 0.0"),
    (lambda: TrainConfig(TINY, Path("run"), dropout=1.0), "dropout is 1.0"),
    (lambda: TrainConfig(TINY, Path("run"), seed=-1), "seed is -1"),
    (lambda: TrainConfig(TINY, Path("run"), threads=0), "threads is 0"),
    (lambda: TrainConfig(TINY, Path("run"), device="tpu"), "device is tpu; it must be cpu, cuda or cuda:N"),
    (lambda: TrainConfig(TINY, Path("run")), "sample.max_tokens is 120; it must be below 16"),
]


@pytest.mark.parametrize(("steps", "expected"), [(3, 3), (7, 7), (8, 7)])
def test_a_preset_shortened_by_its_steps_alone_evaluates_at_most_once_a_step(steps: int, expected: int) -> None:
    assert replace(LengthOptions(max_steps=1_400, num_evaluations=7), max_steps=steps).num_evaluations == expected


@pytest.mark.parametrize(("make", "message"), REFUSED)
def test_a_setting_outside_its_limits_is_refused_on_one_line(make: Callable[[], object], message: str) -> None:
    with pytest.raises(TrainingError, match=message) as refusal:
        make()
    assert "\n" not in str(refusal.value)


def test_every_preset_writes_to_a_folder_of_its_own_name() -> None:
    assert {name: config.out for name, (_, config) in presets().items()} == {
        name: Path("runs") / name for name in presets()
    }


def test_shipped_presets_are_limited_by_steps_so_that_they_can_be_repeated() -> None:
    shipped = [config for name, (_, config) in presets().items() if name.startswith("shakespeare-")]
    assert len(shipped) == 4
    assert all(config.length.max_steps is not None and config.data.path is None for config in shipped)


@pytest.mark.parametrize(
    ("name", "layout"), [("char", "gpt2"), ("gqa", "llama"), ("moe", "mixtral"), ("draft", "gpt2")]
)
def test_shipped_presets_have_the_layout_and_the_size_they_promise(name: str, layout: str) -> None:
    _, config = presets()[f"shakespeare-{name}"]
    assert config_json(config.model, dtype="bfloat16", eos_token_ids=(0,))["model_type"] == layout
    with torch.device("meta"):
        model = GPT(config.model)
    assert config.checkpoint_dtype == "bfloat16"
    assert sum(parameter.numel() for parameter in model.parameters()) * 2 < MAX_WEIGHTS_BYTES
