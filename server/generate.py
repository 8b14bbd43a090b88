"""minigpt-generate: continue one prompt on this machine, without a server. The engine, a tokenizer and the terminal."""

import os
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated

import tyro

from model.tokenizer import Tokenizer
from server.api.detokenizer import IncrementalText
from server.api.stop_strings import StopScanner, StopStrings
from server.engine.config import EngineConfig
from server.engine.core import EngineCore
from server.engine.load import load_engine
from server.engine.params import SamplingParams
from server.engine.types import SequenceRequest

PROGRAM = "minigpt-generate"
DESCRIPTION = """Continue a prompt with a checkpoint, on this machine and without a server.

The same seed and settings give the same text, here and from the server. The seed is printed to the error output when
not given.

Examples:

  minigpt-generate checkpoints/shakespeare-char "ROMEO:"
  minigpt-generate checkpoints/shakespeare-gqa "To be" --temperature 0 --max-tokens 40
  minigpt-generate checkpoints/shakespeare-moe "Once more" --top-p 0.9 --seed 7
"""


@dataclass(frozen=True)
class GenerateOptions:
    """What to continue, and how. Sampling settings are the server's request parameters."""

    checkpoint: Annotated[Path, tyro.conf.Positional]
    """Folder with config.json, model.safetensors and tokenizer.json."""
    prompt: Annotated[str, tyro.conf.Positional]
    """The text to continue; - reads it from standard input."""
    max_tokens: int = 200
    """Most tokens to generate."""
    temperature: float = 0.8
    """0 always takes the likeliest token; 1 draws from the model's distribution; more is wilder."""
    top_k: int = 0
    """Keep only the k likeliest tokens; 0 keeps all."""
    top_p: float = 1.0
    """Keep the likeliest tokens that together reach this probability."""
    min_p: float = 0.0
    """Keep tokens at least this many times as likely as the likeliest one."""
    repetition_penalty: float = 1.0
    """Above 1 discourages tokens already used."""
    stop: Annotated[tuple[str, ...], tyro.conf.UseAppendAction] = ()
    """Text that ends the answer and is not shown; repeat it for several."""
    seed: int | None = None
    """Repeats an answer; drawn at random when not given."""
    engine: Annotated[EngineConfig, tyro.conf.OmitArgPrefixes] = field(default_factory=EngineConfig)

    def __post_init__(self) -> None:
        if not all(self.stop):
            raise ValueError("stop is ''; it must hold at least 1 character")

    def sampling(self, prompt_length: int, context_length: int) -> SamplingParams:
        """The parameters for the engine, as many tokens as still fit. Raises ParameterError."""
        return SamplingParams(
            max_tokens=max(0, min(self.max_tokens, context_length - prompt_length)),
            temperature=self.temperature,
            top_k=self.top_k,
            top_p=self.top_p,
            min_p=self.min_p,
            repetition_penalty=self.repetition_penalty,
            seed=int.from_bytes(os.urandom(8), "little") if self.seed is None else self.seed,
        )


def main(argv: Sequence[str] | None = None) -> int:
    """Print the continuation as it is generated; returns the exit code."""
    try:
        options = tyro.cli(GenerateOptions, prog=PROGRAM, description=DESCRIPTION, args=argv)
        _generate(options, sys.stdin.read() if options.prompt == "-" else options.prompt)
    except (ValueError, OSError) as error:
        print(f"{PROGRAM}: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        return 130
    return 0


def _generate(options: GenerateOptions, prompt: str) -> None:
    tokenizer = Tokenizer.load(options.checkpoint)
    engine = load_engine(options.checkpoint, options.engine)
    tokens = tuple(tokenizer.encode(prompt))
    params = options.sampling(len(tokens), engine.info.context_length)
    if options.seed is None:
        print(f"seed {params.seed}", file=sys.stderr)
    engine.add(SequenceRequest(0, tokens, params))
    print(prompt, end="", flush=True)
    for piece in _pieces(engine, tokenizer, StopStrings(options.stop)):
        print(piece, end="", flush=True)
    print()


def _pieces(engine: EngineCore, tokenizer: Tokenizer, stops: StopStrings) -> Iterator[str]:
    """The text of the engine's only sequence, as it becomes certain."""
    text, scanner = IncrementalText(), StopScanner(stops, include=False)
    while engine.has_work():
        for output in engine.step().outputs:
            if output.finish_reason == "error":
                raise ValueError("the model's output is not finite: its weights are damaged")
            yield scanner.push("".join(text.push(tokenizer.token_bytes(token)) for token in output.tokens), armed=True)
        if scanner.stopped_by is not None:
            return
    yield scanner.push(text.finish(), armed=True)
    yield scanner.finish()


if __name__ == "__main__":
    sys.exit(main())
