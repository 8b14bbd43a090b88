"""The training loop: steps, evaluations, checkpoints, resumption. Everything it needs is handed to it."""

import math
import time
from collections.abc import Callable
from dataclasses import replace

import numpy as np
import torch
from numpy.typing import NDArray

from model.checkpoint import save_checkpoint
from model.gpt import GPT
from training.config import TrainConfig, TrainingError, refuse
from training.dataset import Batch, WindowOrder, cut
from training.evaluate import validate
from training.objective import Losses, Objective
from training.optimizers import Optimizers
from training.parallel import Workers
from training.prepare import Material
from training.progress import Observer, Progress, RouterReport, StepReport
from training.sample import sample_text
from training.schedule import rate_factor
from training.state import STATE_FILE, load_state, save_state

CHECKPOINT_FOLDER = "checkpoint"
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}
EVALUATION_TOKENS = 8_192  # per forward pass: enough to keep the cores busy, little memory


def never() -> bool:
    """Do not stop before the end."""
    return False


class Trainer:
    """One worker of one run; only worker 0 writes files."""

    def __init__(
        self,
        config: TrainConfig,
        material: Material,
        model: GPT,
        workers: Workers,
        target: GPT | None = None,
        clock: Callable[[], float] = time.perf_counter,
    ) -> None:
        """With a `target`, the model learns its logits rather than the text."""
        self.config = config
        self.material = material
        self.model = model
        self.workers = workers
        self.clock = clock
        self.objective = Objective(model, config.loss, DTYPES[config.precision], target)
        self.optimizers = Optimizers(model, config.optimizer)
        has_phase = material.target_logits is None
        self.order = WindowOrder(len(material.training), model.config.context_length, config.seed, has_phase)
        self.progress = Progress()
        self.share, self.micro = _shares(config, self.workers.size)

    def resume(self) -> None:
        """Go on from the state in the run's folder."""
        self.progress = load_state(self.config.out / STATE_FILE, self.model, self.optimizers)

    def run(self, observer: Observer, should_stop: Callable[[], bool] = never) -> bool:
        """Train to the end of the run, or until `should_stop` after some step; True when the end was reached.

        Raises TrainingError when the gradients are no longer finite.
        """
        length = self.config.length
        while self.progress.fraction(length) < 1.0:
            observer.on_step(self.progress, self._timed_step())
            due = self.progress.evaluations_due(length)
            if due > self.progress.num_evaluations:
                self.progress.num_evaluations = due
                self._evaluate(observer)
                self._save()
            if self.workers.first(float(should_stop())):
                self._save()
                return False
        return True

    def _timed_step(self) -> StepReport:
        started = self.clock()
        report = self._step()
        self.progress.step += 1
        # One worker's clock for all: they must agree on where the schedule and the end are.
        self.progress.seconds = self.workers.first(self.progress.seconds + self.clock() - started)
        return report

    def _step(self) -> StepReport:
        factor = rate_factor(self.config.schedule, self._schedule_position())
        if self.config.dropout:
            torch.manual_seed(_derived_seed(self.config.seed, self.progress.step, self.workers.rank))
        losses = [self.accumulate(batch) for batch in self.micro_batches()]
        self.workers.average_gradients(self.optimizers.parameters)
        norm = self.optimizers.step(factor)
        if not math.isfinite(norm):
            raise TrainingError(f"the gradient's norm is {norm} in step {self.progress.step}; try lower learning rates")
        return self._report(losses, factor, norm)

    def _schedule_position(self) -> float:
        """Progress as the schedule sees it: a step-limited run's first step already takes one share of the rate."""
        length = self.config.length
        if length.max_steps is not None:
            return (self.progress.step + 0.5) / length.max_steps
        return max(self.progress.fraction(length), 1e-4)

    def micro_batches(self) -> list[Batch]:
        """This worker's part of the step's windows. Which windows a step sees does not depend on the cutting."""
        first = self.progress.step * self.config.length.batch_size
        starts = self.order.starts(first, self.config.length.batch_size)
        mine = starts[self.workers.rank * self.share :][: self.share]
        return [self._batch(mine[place : place + self.micro]) for place in range(0, self.share, self.micro)]

    def _batch(self, starts: NDArray[np.int64]) -> Batch:
        context, logits = self.model.config.context_length, self.material.target_logits
        if logits is None:
            return cut(self.material.training, starts, context)
        batch = cut(self.material.training, starts, context - 1)
        return replace(batch, target_logits=torch.from_numpy(logits[starts // context]))

    def accumulate(self, batch: Batch) -> Losses:
        losses = self.objective.losses(batch)
        torch.autograd.backward(losses.total * (self.micro / self.share))
        return losses

    def _report(self, losses: list[Losses], factor: float, norm: float) -> StepReport:
        mean = 1.0 / (len(losses) * self.workers.size)
        tokens = self.workers.add_up(torch.stack([each.tokens.detach() for each in losses]).sum()) * mean
        routings = [each.routing for each in losses if each.routing is not None]
        if not routings:
            return StepReport(float(tokens), factor, norm)
        sums = self.workers.add_up(torch.stack([routing.losses for routing in routings]).sum(0))
        balance, router_z = (sums * mean).tolist()
        load = self.workers.add_up(torch.stack([routing.expert_load for routing in routings]).sum(0)).double()
        shares = (load / load.sum(-1, keepdim=True)).tolist()
        return StepReport(float(tokens), factor, norm, RouterReport(balance, router_z, shares))

    def _evaluate(self, observer: Observer) -> None:
        size = max(1, EVALUATION_TOKENS // self.model.config.context_length)
        tokens = self.material.validation[: self.config.length.max_validation_tokens]
        validation = validate(self.objective, tokens, size, self.workers)
        is_best = validation.loss < self.progress.best_loss
        self.progress.best_loss = min(validation.loss, self.progress.best_loss)
        if self.workers.rank:
            return
        if is_best:
            dtype = DTYPES[self.config.checkpoint_dtype]
            end = self.material.tokenizer.eos_token_ids
            save_checkpoint(self.model, self.config.out / CHECKPOINT_FOLDER, dtype=dtype, eos_token_ids=end)
        sample = ""
        if self.config.sample.max_tokens:
            seed = _derived_seed(self.config.seed, self.progress.step, 0)
            sample = sample_text(self.model, self.material.tokenizer, self.config.sample, seed)
        observer.on_evaluation(self.progress, validation, sample, is_best)

    def _save(self) -> None:
        if self.workers.rank == 0:
            save_state(self.config.out / STATE_FILE, self.progress, self.model, self.optimizers)


def _shares(config: TrainConfig, num_workers: int) -> tuple[int, int]:
    """Sequences per step of one worker, and per forward pass."""
    batch, micro = config.length.batch_size, config.length.micro_batch_size
    if batch % num_workers:
        refuse("length.batch_size", batch, f"must be a multiple of the {num_workers} workers")
    share = batch // num_workers
    if micro is not None and share % micro:
        refuse("length.micro_batch_size", micro, f"must divide a worker's {share} sequences")
    return share, micro or share


def _derived_seed(seed: int, step: int, rank: int) -> int:
    return int(np.random.SeedSequence([seed, step, rank]).generate_state(1, np.uint64)[0])
