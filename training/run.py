"""Wires one run together: folder, tokenizer, model, trainer, and the record of what was asked for."""

import dataclasses
import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TextIO

import numpy as np
import torch

from model.files import read_json, replace_bytes
from model.gpt import GPT
from training.config import TrainConfig, TrainingError, refuse
from training.dataset import WindowOrder
from training.distill import distillation_record, load_target, load_written, start_from_target, write_material
from training.growth import grow, load_base
from training.journal import Journal
from training.loop import CHECKPOINT_FOLDER, Trainer, never
from training.parallel import Workers
from training.prepare import Material, build_model, load_tokenizer, make_tokenizer, read_corpus, tokenize
from training.progress import Nobody
from training.state import STATE_FILE

RECIPE_FILE = "recipe.json"
# Settings that may differ between a run and its resumption.
FREE = ("out", "resume", "threads")


def train(config: TrainConfig, workers: Workers, stream: TextIO, should_stop: Callable[[], bool] = never) -> bool:
    """One worker's part of the run that `config` describes; True when the run came to its end.

    Raises TrainingError, with one line to show, for what the caller can mend.
    """
    if workers.rank == 0:
        _check_folder(config)
    material = _material(config, workers)
    device = torch.device(config.device)
    model = build_model(config, material.tokenizer.vocab_size, device)
    base = load_base(config, material.tokenizer, device)
    if base is not None:
        grow(model, base)
    target = load_target(config, material.tokenizer, device)
    if target is not None:
        material = _written_material(config, material, target, workers)
        if config.distill.start_from_target:
            start_from_target(model, target)
    trainer = Trainer(config, material, model, workers, target)
    if workers.rank == 0:
        _write_recipe(config, _recipe(config, material, trainer))
    if (config.out / STATE_FILE).exists():  # not so when the run ended before its first evaluation
        trainer.resume()
    if workers.rank:
        return trainer.run(Nobody(), should_stop)
    journal = Journal(config, trainer.progress, stream)
    try:
        return trainer.run(journal, should_stop)
    finally:
        journal.close()


def _check_folder(config: TrainConfig) -> None:
    """The first file makes the folder, so that refused data leaves none behind."""
    started = (config.out / RECIPE_FILE).exists()
    if started and not config.resume:
        refuse("out", config.out, "holds a run already: go on with it (--resume) or take another folder")
    if config.resume and not started:
        refuse("out", config.out, "holds no run to resume")


def _material(config: TrainConfig, workers: Workers) -> Material:
    """Worker 0 makes the tokenizer and saves it; the others load what was saved, a resumed run what it began with."""
    corpus = read_corpus(config)
    folder = config.out / CHECKPOINT_FOLDER
    if workers.rank == 0 and not config.resume:
        material = tokenize(corpus, make_tokenizer(config, corpus))
        if config.distill.target is None:  # else what the target writes is cut into windows, not this
            WindowOrder(len(material.training), config.model.context_length, config.seed)  # refuses too short a text
        material.tokenizer.save(folder)
        workers.wait()
        return material
    workers.wait()
    return tokenize(corpus, load_tokenizer(folder))


def _written_material(config: TrainConfig, corpus: Material, target: GPT, workers: Workers) -> Material:
    """Worker 0 has the target write and saves the text; all load what was saved, a resumed run what it began with."""
    if workers.rank == 0 and not config.resume:
        write_material(config, corpus, target)
    workers.wait()
    return load_written(config, corpus)


def _recipe(config: TrainConfig, material: Material, trainer: Trainer) -> dict[str, object]:
    """What makes the run what it is."""
    target = trainer.objective.target
    return {
        "config": recorded(config),
        "corpus_sha256": material.corpus_sha256,
        **({} if target is None else {"distillation": distillation_record(material, target)}),
        "num_training_tokens": len(material.training),
        "num_validation_tokens": len(material.validation),
        "vocab_size": material.tokenizer.vocab_size,
        "num_parameters": sum(parameter.numel() for parameter in trainer.model.parameters()),
        "num_workers": trainer.workers.size,
        "versions": {"torch": torch.__version__, "numpy": np.__version__},
    }


def _write_recipe(config: TrainConfig, recipe: Mapping[str, object]) -> None:
    """Record the recipe; when resuming, insist that it is the same."""
    path = config.out / RECIPE_FILE
    if config.resume:
        _check_same(read_json(path), recipe, ())
    else:
        replace_bytes(path, (json.dumps(recipe, indent=2) + "\n").encode())


def recorded(config: TrainConfig) -> dict[str, object]:
    """The configuration as the recipe has it."""
    plain: dict[str, object] = json.loads(json.dumps(dataclasses.asdict(config), default=Path.__fspath__))
    return plain


def _check_same(before: Mapping[str, object], now: Mapping[str, object], path: tuple[str, ...]) -> None:
    for name, value in now.items():
        old, here = before.get(name), (*path, name)
        if here[0] == "versions" or (path == ("config",) and name in FREE):
            continue
        if isinstance(old, dict) and isinstance(value, dict):
            _check_same(old, value, here)
        elif old != value:
            raise TrainingError(f"{'.'.join(here).removeprefix('config.')} is {value}; the run to resume has {old}")
