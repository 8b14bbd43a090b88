"""What the stages remember of one sequence: its tokens, their counts within a window, mirostat's mu. Knows no torch."""

from collections.abc import Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from server.engine.params import SamplingParams

Tokens = NDArray[np.int32]
Sequences = Mapping[int, list[Tokens]]
"""Token sequences by the token at which they are looked up."""

ALWAYS = -1  # where words of one token are looked up, which no history has to prepare


class DecodingState:
    """A sequence's history, as far as its parameters ask for it. `append` every chosen token, once."""

    def __init__(self, params: SamplingParams, prompt: Sequence[int], vocab_size: int, num_forked: int = 0) -> None:
        self.mu = 2.0 * params.mirostat_tau  # Basu et al. 2021 start at twice the target
        self.unbroken = len(prompt)  # tokens since the last DRY sequence breaker ended
        self.words = _by_token(params.bad_words, at=-2)
        self._window = params.repeat_last_n
        self._num_prompt, self._num_tokens = len(prompt) - num_forked, len(prompt)
        self._buffer: Tokens = np.zeros(2 * len(prompt) + 64, dtype=np.int32)
        self._buffer[: len(prompt)] = prompt
        self._breakers = _by_token(params.dry_breakers, at=-1) if params.dry_multiplier else {}
        self._find_last_breaker()
        counted = vocab_size if _has_penalty(params) else 0
        start = 0 if self._window < 0 else max(0, len(prompt) - self._window)
        # [vocab] how often in the window, and how often in the part of it that is output
        self.seen = _counts(prompt[start:], counted)
        self.said = _counts(prompt[max(start, self._num_prompt) :], counted)

    @classmethod
    def of(
        cls, params: SamplingParams, prompt: Sequence[int], vocab_size: int, num_forked: int = 0
    ) -> "DecodingState | None":
        """The state after `prompt`, whose last `num_forked` tokens count as output; None when no stage needs one."""
        looks_back = params.dry_multiplier or params.no_repeat_ngram_size or params.bad_words or params.mirostat
        return cls(params, prompt, vocab_size, num_forked) if looks_back or _has_penalty(params) else None

    @property
    def tokens(self) -> Tokens:
        """Prompt and output [tokens], a view."""
        return self._buffer[: self._num_tokens]

    def fork(self) -> "DecodingState":
        """An independent copy."""
        copy = object.__new__(DecodingState)
        copy.__dict__.update(self.__dict__)
        copy._buffer, copy.seen, copy.said = self._buffer.copy(), self.seen.copy(), self.said.copy()
        return copy

    def append(self, token: int) -> None:
        """`token` is the sequence's next."""
        if self._num_tokens == len(self._buffer):
            self._buffer = np.concatenate((self._buffer, np.zeros_like(self._buffer)))
        self._buffer[self._num_tokens] = token
        self._num_tokens += 1
        self.unbroken = 0 if self._breaks(self._num_tokens) else self.unbroken + 1
        if len(self.seen):
            self._count(self._num_tokens - 1, 1)
            left = self._num_tokens - 1 - self._window
            if self._window >= 0 and left >= 0:
                self._count(left, -1)

    def is_breaker(self, token: int) -> bool:
        """Whether the token alone is a DRY sequence breaker: those are never penalised."""
        return any(len(one) == 1 for one in self._breakers.get(token, ()))

    def _count(self, index: int, change: int) -> None:
        token = self._buffer[index]
        self.seen[token] += change
        self.said[token] += change if index >= self._num_prompt else 0

    def _breaks(self, end: int) -> bool:
        """Whether a sequence breaker ends right before index `end`."""
        candidates = self._breakers.get(int(self._buffer[end - 1]), ())
        return any(np.array_equal(self._buffer[max(0, end - len(one)) : end], one) for one in candidates)

    def _find_last_breaker(self) -> None:
        if self._breakers:
            ends = range(self._num_tokens, 0, -1)
            self.unbroken = next((self._num_tokens - end for end in ends if self._breaks(end)), self._num_tokens)


def _counts(tokens: Sequence[int], size: int) -> Tokens:
    """How often each token occurs, [size]; nothing is counted where size is 0."""
    return np.bincount(tokens if size else (), minlength=size).astype(np.int32)


def _by_token(sequences: Sequence[Sequence[int]], at: int) -> Sequences:
    """The sequences by their token `at`, those too short for that under ALWAYS."""
    table: dict[int, list[Tokens]] = {}
    for sequence in sequences:
        key = sequence[at] if len(sequence) >= -at else ALWAYS
        table.setdefault(key, []).append(np.array(sequence, dtype=np.int32))
    return table


def _has_penalty(params: SamplingParams) -> bool:
    return params.repetition_penalty != 1.0 or params.presence_penalty != 0.0 or params.frequency_penalty != 0.0
