"""The batches that engines are compared by, in process: the same prompts for each. Needs nothing but Python."""

import json
import random
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass

Prompt = list[int]
# Decodes prompts that all arrive at once, each to its full length; how many tokens came out.
Decode = Callable[[Sequence[Prompt], int], int]


@dataclass(frozen=True)
class Cell:
    """`concurrency` prompts at once, each answered with `output_tokens`."""

    concurrency: int
    prompt_tokens: int
    output_tokens: int

    @property
    def is_of_prompts(self) -> bool:
        """Whether it measures how fast prompts are read, rather than how fast answers are written."""
        return self.output_tokens == 1

    def __str__(self) -> str:
        return f"{self.prompt_tokens} + {self.output_tokens} at {self.concurrency}"


@dataclass(frozen=True)
class Plan:
    """All that a run measures, and for how long each."""

    cells: list[Cell]
    vocab_size: int
    seconds: float

    def to_json(self) -> str:
        """As `from_json` reads it: how the run is told to a process of its own."""
        return json.dumps(asdict(self))

    @staticmethod
    def from_json(text: str) -> "Plan":
        """What `to_json` wrote."""
        fields = json.loads(text)
        return Plan([Cell(**cell) for cell in fields["cells"]], fields["vocab_size"], fields["seconds"])


def rates(plan: Plan, decode: Decode) -> list[float]:
    """Tokens a second of each cell: of prompts where it is of prompts, else of answers. Warms up with a batch of each.

    Raises ValueError where an answer was short.
    """
    return [
        _rate(cell, _batches(cell, plan.vocab_size, seed), decode, plan.seconds) for seed, cell in enumerate(plan.cells)
    ]


def _rate(cell: Cell, batches: Iterator[list[Prompt]], decode: Decode, seconds: float) -> float:
    num_expected = cell.concurrency * cell.output_tokens
    decode(next(batches), cell.output_tokens)
    num_batches, started = 0, time.perf_counter()
    while (elapsed := time.perf_counter() - started) < seconds or not num_batches:
        num_tokens = decode(next(batches), cell.output_tokens)
        if num_tokens != num_expected:
            raise ValueError(f"{cell}: {num_tokens} tokens came out where {num_expected} were asked for")
        num_batches += 1
    num_each = cell.prompt_tokens if cell.is_of_prompts else cell.output_tokens
    return num_batches * cell.concurrency * num_each / elapsed


def _batches(cell: Cell, vocab_size: int, seed: int) -> Iterator[list[Prompt]]:
    """No two prompts alike, so that no cache of prefixes helps; the same ones in every process."""
    draw = random.Random(seed)
    while True:
        yield [draw.choices(range(vocab_size), k=cell.prompt_tokens) for _ in range(cell.concurrency)]
