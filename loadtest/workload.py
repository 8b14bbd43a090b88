"""The requests of a load test, each a pure function of (seed, index). Knows no server and no clock."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from loadtest.config import DEFAULT_OUTPUT_LENGTH, DEFAULT_PROMPT_LENGTH, RequestOptions
from loadtest.lengths import parse_length

Prompt = str | list[int]

# Short, common words: most tokenizers give each one token or two, so a length in words is near one in tokens.
VOCABULARY = (
    "a about all and are as at back be because but by can could day do even first for from get give go good have he "
    "her him his how if in into it its just know like look make me most my new no not now of on one only or other our "
    "out over people say see she so some take than that the their them then there these they think this time to two "
    "up use want way we well what when which who will with work would year you your"
)

# Separate random streams of one seed: [seed, purpose, index].
PURPOSE_REQUEST, PURPOSE_PREFIX, PURPOSE_ARRIVALS = 0, 1, 2


@dataclass(frozen=True)
class Request:
    """One request before it is put into the endpoint's shape."""

    index: int
    prompt: Prompt
    max_tokens: int
    seed: int
    disconnect_after: int | None
    """Leave once this many chunks have come; None to stay."""


class Workload:
    """Makes requests by number. Two of them with equal options make equal requests."""

    def __init__(self, options: RequestOptions, lines: Sequence[str] = ()) -> None:
        self._options = options
        self._lines = lines
        self._words = VOCABULARY.split()
        prompt, output = options.prompt_length, options.output_length
        self._prompt_length = parse_length("prompt_length", prompt or f"fixed:{DEFAULT_PROMPT_LENGTH}")
        self._output_length = parse_length("output_length", output or f"fixed:{DEFAULT_OUTPUT_LENGTH}")
        prefix_rng = np.random.default_rng([options.seed, PURPOSE_PREFIX])
        self._prefix = self._prompt(prefix_rng, options.shared_prefix)

    def request(self, index: int) -> Request:
        """Request number `index`, whichever were made before it."""
        rng = np.random.default_rng([self._options.seed, PURPOSE_REQUEST, index])
        num_prompt, num_output = self._prompt_length.draw(rng), self._output_length.draw(rng)
        seed = int(rng.integers(2**31))
        leaves = rng.random() < self._options.disconnect_fraction
        leaves_after = int(rng.integers(num_output // 2 + 1))
        return Request(
            index=index,
            prompt=self._with_prefix(self._body(rng, index, num_prompt)),
            max_tokens=num_output,
            seed=seed,
            disconnect_after=leaves_after if leaves else None,
        )

    def _body(self, rng: np.random.Generator, index: int, length: int) -> Prompt:
        return self._lines[index % len(self._lines)] if self._lines else self._prompt(rng, length)

    def _prompt(self, rng: np.random.Generator, length: int) -> Prompt:
        if self._options.prompt_token_ids:
            assert self._options.vocab_size is not None
            return [int(token) for token in rng.integers(self._options.vocab_size, size=length)]
        return " ".join(self._words[word] for word in rng.integers(len(self._words), size=length))

    def _with_prefix(self, body: Prompt) -> Prompt:
        if not self._prefix:
            return body
        if isinstance(self._prefix, list):
            assert isinstance(body, list)
            return self._prefix + body
        return f"{self._prefix} {body}"
