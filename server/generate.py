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
from server.api.prompts import TokenizedPrompt, fit_max_tokens
from server.api.stop_strings import StopScanner, StopStrings
from server.command_line import parse_options
from server.engine.config import EngineConfig
from server.engine.core import EngineCore
from server.engine.load import load_engine
from server.engine.params import SamplingParams
from server.engine.types import DraftMethod, SequenceRequest, Speculation
from server.errors import BadRequest, CannotStart

PROGRAM = "minigpt-generate"
DEFAULT_TOKENS = 200
READER_GONE = 141  # what shells see of a program that SIGPIPE ended
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
    """The text to continue; - reads it from standard input. An empty one is the beginning of a document."""
    max_tokens: int | None = None
    """Most tokens to generate: 200 when not given, or less where the context ends."""
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
    draft: Path | None = None
    """Folder of a small model that guesses tokens ahead: faster, never different."""
    speculative: DraftMethod = "off"
    """What guesses ahead: the --draft, earlier tokens (ngram, suffix), whatever pays (auto), or nothing."""
    engine: Annotated[EngineConfig, tyro.conf.OmitArgPrefixes] = field(default_factory=EngineConfig)
    """How the engine runs."""

    def __post_init__(self) -> None:
        if not all(self.stop):
            raise ValueError("stop is ''; it must hold at least 1 character")
        if self.max_tokens is not None and self.max_tokens < 0:
            raise ValueError(f"max_tokens is {self.max_tokens}; it must be at least 0")
        if self.speculative == "draft" and self.draft is None:
            raise ValueError("speculative is draft; it must come with --draft")

    def sampling(self, prompt: Sequence[int], context_length: int) -> SamplingParams:
        """The parameters for the engine. Raises BadRequest, as the server does, for what the context cannot hold."""
        wanted = self.max_tokens
        if wanted is None:
            wanted = max(1, min(DEFAULT_TOKENS, context_length - len(prompt)))
        tokenized = TokenizedPrompt(tuple(prompt), None, "prompt")
        return SamplingParams(
            max_tokens=fit_max_tokens(tokenized, wanted, is_chat=False, context_length=context_length),
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
        options = parse_options(GenerateOptions, PROGRAM, DESCRIPTION, argv)
        _generate(options, sys.stdin.read() if options.prompt == "-" else options.prompt)
    except BrokenPipeError:
        # What is still buffered goes nowhere, or the interpreter would complain of it at its end.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return READER_GONE
    except (BadRequest, CannotStart, ValueError, OSError) as error:
        print(f"{PROGRAM}: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        return 130
    return 0


def _generate(options: GenerateOptions, prompt: str) -> None:
    for folder in (options.checkpoint, options.draft):
        if folder is not None and not folder.is_dir():
            raise CannotStart(f"{folder}: there is no such folder")
    tokenizer = Tokenizer.load(options.checkpoint)
    tokens = _tokens_of(prompt, tokenizer)
    engine = load_engine(options.checkpoint, options.engine, options.draft)
    params = options.sampling(tokens, engine.info.context_length)
    if options.seed is None:
        print(f"seed {params.seed}", file=sys.stderr)
    method = "draft" if options.draft is not None and options.speculative == "off" else options.speculative
    engine.add(SequenceRequest(0, tokens, params, speculation=Speculation(method)))
    print(prompt, end="", flush=True)
    for piece in _pieces(engine, tokenizer, StopStrings(options.stop)):
        print(piece, end="", flush=True)
    print()


def _tokens_of(prompt: str, tokenizer: Tokenizer) -> tuple[int, ...]:
    """At least one: an empty text is the beginning of a document, if the model has a token for that."""
    bos = tokenizer.bos_token_id
    tokens = tuple(tokenizer.encode(prompt)) or (() if bos is None else (bos,))
    if not tokens:
        raise ValueError("prompt is empty; it must have at least one token")
    return tokens


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
