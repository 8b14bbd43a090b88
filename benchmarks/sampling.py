"""What choosing a token costs: microseconds of one thread per row, least of several repeats, as a Markdown table.

python -m benchmarks.sampling [--sampler torch native] [--vocab 336 4096 50257] [--batch 1 8 32 64]

Logits are normal with a deviation of 2, as a small model's are; the histories of the penalties hold 128 tokens.
"""

import argparse
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace

import torch
from torch import Tensor

from model.native.abi import open_library
from server.engine.params import SamplingParams
from server.engine.sampler import DecodingState, Row, describe
from server.engine.sampling.native import NativeSampler
from server.engine.verify import Choose, choose_by_torch

_NUM_HISTORY = 128
_SECONDS = 0.2  # a cell is repeated for so long
_FILTERED = SamplingParams(top_k=40, top_p=0.95, min_p=0.05)
_PENALISED = SamplingParams(
    temperature=0.8, top_p=0.9, repetition_penalty=1.1, presence_penalty=0.5, frequency_penalty=0.2
)
PARAMETERS: Mapping[str, SamplingParams] = {
    "greedy": SamplingParams(temperature=0.0),
    "T=1": SamplingParams(),
    "T=0.8, top_p 0.9": SamplingParams(temperature=0.8, top_p=0.9),
    "top_k 40, top_p 0.95, min_p 0.05": _FILTERED,
    "T=0.8, top_p 0.9, three penalties": _PENALISED,
    "all of them": replace(_PENALISED, top_k=40, min_p=0.05),
}
SAMPLERS: Mapping[str, Callable[[], Choose]] = {
    "torch": lambda: choose_by_torch,
    "native": lambda: NativeSampler(open_library()),
}


def rows_of(params: SamplingParams, batch: int, vocab_size: int) -> list[Row]:
    """Rows with seeds and histories of their own."""
    rows = []
    for seed in range(batch):
        history = [(seed * 31 + place * place) % vocab_size for place in range(_NUM_HISTORY)]
        state = DecodingState.of(params, history, vocab_size, _NUM_HISTORY // 2)
        rows.append(Row(replace(params, seed=seed), _NUM_HISTORY, (), state))
    return rows


def least_microseconds(work: Callable[[], object], batch: int) -> float:
    """Of a call, by row."""
    least = float("inf")
    end = time.perf_counter() + _SECONDS
    while time.perf_counter() < end or least == float("inf"):
        started = time.thread_time()
        work()
        least = min(least, time.thread_time() - started)
    return least / batch * 1e6


def measure(choose: Choose, params: SamplingParams, batch: int, logits: Tensor) -> float:
    """Microseconds per row of choosing for `batch` rows of logits [any, vocab]."""
    rows = rows_of(params, batch, logits.shape[-1])
    places = list(range(batch))
    return least_microseconds(lambda: choose(logits, places, rows), batch)


def print_line(cells: Sequence[object]) -> None:
    print("| " + " | ".join(map(str, cells)) + " |", flush=True)


def main() -> None:
    """Print one table: a line for each sampler, vocabulary and set of parameters, a column for each batch."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sampler", nargs="+", choices=SAMPLERS, default=list(SAMPLERS))
    parser.add_argument("--vocab", nargs="+", type=int, default=[336, 4096, 50_257])
    parser.add_argument("--batch", nargs="+", type=int, default=[1, 8, 32, 64])
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    print_line(["vocabulary", "parameters", "sampler", *arguments.batch])
    print_line(["---"] * (3 + len(arguments.batch)))
    for vocab_size in arguments.vocab:
        logits = torch.randn(max(arguments.batch), vocab_size, generator=torch.Generator().manual_seed(0)) * 2
        for name, params in PARAMETERS.items():
            for sampler in arguments.sampler:
                choose = SAMPLERS[sampler]()
                costs = [measure(choose, params, batch, logits) for batch in arguments.batch]
                print_line([vocab_size, name, sampler, *(f"{cost:.1f}" for cost in costs)])
        described = [
            least_microseconds(lambda: describe(logits[:batch], [7] * batch, [5] * batch), batch)  # noqa: B023
            for batch in arguments.batch
        ]
        print_line([vocab_size, "logprobs 5", "torch", *(f"{cost:.1f}" for cost in described)])


if __name__ == "__main__":
    main()
