"""How often a draft model guesses its target's tokens: tokens per target step, over prompts from held-out text.

python -m benchmarks.acceptance --target checkpoints/shakespeare-char --draft checkpoints/shakespeare-draft
"""

import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
import torch
import tyro
from torch import Tensor

from model.attention import causal_fused_attend
from model.checkpoint import load_checkpoint
from model.files import CheckpointError
from model.gpt import GPT
from model.tokenizer import Tokenizer
from server.engine.noise import LANES, gumbel_noise
from training.config import TrainingError
from training.corpus import read_documents, split_documents
from training.loop import DTYPES
from training.writing import KeyValueCache

PROGRAM = "python -m benchmarks.acceptance"


@dataclass(frozen=True)
class Options:
    """Measure acceptance with coupled noise."""

    target: Path = Path("checkpoints/shakespeare-char")
    draft: Path = Path("checkpoints/shakespeare-draft")
    temperatures: tuple[float, ...] = (0.0, 0.8)
    num_drafts: int = 4
    """Tokens drafted per target step."""
    num_prompts: int = 50
    prompt_length: int = 32
    num_tokens: int = 200
    """Tokens that the target writes after each prompt."""
    text: Path | None = None
    """Where the prompts are from, as --data.path of minigpt-train; its validation split is used."""
    validation_fraction: float = 0.1
    """As --data.validation-fraction of the target's training."""
    dtype: Literal["float32", "bfloat16"] = "float32"
    seed: int = 0


@dataclass(frozen=True)
class Acceptance:
    """The target steps of all texts, counted by how many drafts each accepted."""

    steps: list[int]  # steps[a] accepted a drafts, a = 0 .. num_drafts

    @property
    def tokens_per_step(self) -> float:
        """Accepted drafts and the target's own token, averaged over target steps."""
        tokens = sum((accepted + 1) * count for accepted, count in enumerate(self.steps))
        return tokens / sum(self.steps)

    @property
    def by_position(self) -> list[float]:
        """Share of the steps that accepted draft 1, 2, ..."""
        return [sum(self.steps[place:]) / sum(self.steps) for place in range(1, len(self.steps))]


def count_steps(agrees: Sequence[Sequence[bool]], num_drafts: int) -> Acceptance:
    """Walk each text in target steps; agrees[text][i] says whether the draft guesses token i after its true prefix.

    That is enough: as long as drafts are accepted, what the draft model has read is what the target wrote. A step that
    would reach over the end of its text is not counted.
    """
    steps = [0] * (num_drafts + 1)
    for row in agrees:
        place = 0
        while place + num_drafts < len(row):
            window = row[place : place + num_drafts]
            accepted = next((index for index, agreed in enumerate(window) if not agreed), num_drafts)
            steps[accepted] += 1
            place += accepted + 1
    return Acceptance(steps)


def choose(logits: Tensor, position: int, temperature: float, seed: int) -> Tensor:
    """The tokens [texts] that logits [texts, vocab] and each text's own noise at `position` give."""
    if temperature == 0:
        return logits.argmax(-1)
    texts, vocab = logits.shape
    counters = torch.arange(-(-vocab // LANES)).repeat(texts)
    seeds = (seed + torch.arange(texts)).repeat_interleave(len(counters) // texts)
    noise = gumbel_noise(seeds, torch.full_like(counters, position), counters).view(texts, -1)[:, :vocab]
    return (logits.double() / temperature + noise).argmax(-1)


def write(target: GPT, prompts: Tensor, temperature: float, options: Options) -> Tensor:
    """What the target says after `prompts` [texts, prompt], with them: [texts, prompt + num_tokens]."""
    length = prompts.shape[1] + options.num_tokens
    cache = KeyValueCache(target.config, length, target.embedding.weight)
    pieces = [prompts]
    for end in range(prompts.shape[1], length):
        positions = torch.arange(end - pieces[-1].shape[1], end)
        hidden = target(pieces[-1], positions, cache.attend(positions))
        pieces.append(choose(target.unembed(hidden[:, -1]), end, temperature, options.seed)[:, None])
    return torch.cat(pieces, dim=1)


def agreements(draft: GPT, texts: Tensor, temperature: float, options: Options) -> list[list[bool]]:
    """For every written token whether the draft, reading the same prefix with the same noise, chooses it."""
    attend = causal_fused_attend(draft.config, texts.shape[1], texts.device)
    logits = draft.unembed(draft(texts, torch.arange(texts.shape[1]), attend))
    columns = [
        choose(logits[:, place - 1], place, temperature, options.seed) == texts[:, place]
        for place in range(options.prompt_length, texts.shape[1])
    ]
    agrees: list[list[bool]] = torch.stack(columns, dim=1).tolist()
    return agrees


def held_out_prompts(tokenizer: Tokenizer, options: Options) -> Tensor:
    """Tokens [prompts, prompt_length] from random places of the validation split."""
    corpus = split_documents(read_documents(options.text), options.validation_fraction)
    tokens = np.array(tokenizer.encode("".join(document.text for document in corpus.validation)))
    starts = np.random.default_rng(options.seed).integers(len(tokens) - options.prompt_length, size=options.num_prompts)
    return torch.from_numpy(tokens[starts[:, None] + np.arange(options.prompt_length)])


def pass_seconds(model: GPT, num_tokens: int) -> float:
    """Median time of one sequence's forward pass over `num_tokens` next tokens, 128 tokens before them."""
    cache = KeyValueCache(model.config, 128 + num_tokens, model.embedding.weight)
    model(torch.zeros(1, 128, dtype=torch.int64), torch.arange(128), cache.attend(torch.arange(128)))
    tokens, positions = torch.zeros(1, num_tokens, dtype=torch.int64), torch.arange(128, 128 + num_tokens)
    times = []
    for _ in range(200):
        started = time.perf_counter()
        model.unembed(model(tokens, positions, cache.attend(positions)))
        times.append(time.perf_counter() - started)
    return float(np.median(times))


def measure(options: Options) -> None:
    """Print a table: one row per temperature."""
    device, dtype = torch.device("cpu"), DTYPES[options.dtype]
    target, draft = (load_checkpoint(folder, dtype, device) for folder in (options.target, options.draft))
    prompts = held_out_prompts(Tokenizer.load(options.target), options)
    print("| temperature | tokens per target step | accepted at least 1, 2, ... drafts |\n|---|---|---|")
    for temperature in options.temperatures:
        texts = write(target, prompts, temperature, options)
        acceptance = count_steps(agreements(draft, texts, temperature, options), options.num_drafts)
        shares = ", ".join(f"{share:.3f}" for share in acceptance.by_position)
        print(f"| {temperature} | {acceptance.tokens_per_step:.3f} | {shares} |", flush=True)
    one, verify = pass_seconds(draft, 1), pass_seconds(target, options.num_drafts + 1)
    print(f"one pass of the draft: {one * 1e3:.2f} ms; verifying {options.num_drafts} drafts: {verify * 1e3:.2f} ms")


def main(argv: Sequence[str]) -> int:
    """Measure; returns the exit code. What cannot be read is one line and 2."""
    options = tyro.cli(Options, prog=PROGRAM, args=argv)
    try:
        with torch.inference_mode():
            measure(options)
    except (TrainingError, CheckpointError) as error:
        print(f"{PROGRAM}: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    torch.set_num_threads(1)
    sys.exit(main(sys.argv[1:]))
