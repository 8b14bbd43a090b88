"""What the stages remember of one sequence: its tokens, their counts within a window, mirostat's mu. Knows no torch."""

from collections.abc import Sequence

import numpy as np

from server.engine.params import SamplingParams
from server.engine.sampling.ranges import MAX_MATCH, MAX_SEQUENCE_TOKENS
from server.engine.sampling.repeats import Tokens, Words, extended_matches, match_lengths


class DecodingState:
    """A sequence's history, as far as its parameters ask for it. `append` every chosen token, once."""

    def __init__(self, params: SamplingParams, prompt: Sequence[int], vocab_size: int, num_forked: int = 0) -> None:
        self.mu = 2.0 * params.mirostat_tau  # Basu et al. 2021 start at twice the target
        self.words = Words.of(params.bad_words)
        self._window = params.repeat_last_n
        self._num_prompt, self._num_tokens = len(prompt) - num_forked, len(prompt)
        self._buffer: Tokens = np.zeros(2 * len(prompt) + 64, dtype=np.int32)
        self._buffer[: len(prompt)] = prompt
        self._breakers = frozenset(params.dry_breakers if params.dry_multiplier else ())
        self._breaker_lengths = frozenset(map(len, self._breakers))
        # Tokens since the last DRY sequence breaker ended, counted up to MAX_MATCH: no match is told from a longer one
        self.unbroken = self._count_unbroken()
        self._is_matching = params.dry_multiplier > 0 or params.no_repeat_ngram_size > 1
        # `match_lengths` of the tokens; never written to, as forks share it
        self.matches: Tokens = match_lengths(self.tokens if self._is_matching else self.tokens[:0])
        counted = vocab_size if _has_penalty(params) else 0
        start = 0 if self._window < 0 else max(0, len(prompt) - self._window)
        # [vocab] how often in the window, and how often in the part of it that is output
        self.seen = _counts(prompt[start:], counted)
        self.said = _counts(prompt[max(start, self._num_prompt) :], counted)
        self._addresses: tuple[int, int, int] | None = None  # of the buffer and the two counts

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

    @property
    def counted(self) -> Tokens:
        """Every token that the counts are not 0 of, some more than once [window], a view."""
        start = 0 if self._window < 0 else max(0, self._num_tokens - self._window)
        return self._buffer[start : self._num_tokens]

    def history(self) -> tuple[int, int, int, int]:
        """Where in memory `counted`, `seen` and `said` are, and the length of the first; until the next `append`."""
        if self._addresses is None:
            self._addresses = self._buffer.ctypes.data, self.seen.ctypes.data, self.said.ctypes.data
        buffer, seen, said = self._addresses
        count = self._num_tokens if self._window < 0 else min(self._window, self._num_tokens)
        return buffer + self._buffer.itemsize * (self._num_tokens - count), seen, said, count

    def fork(self) -> "DecodingState":
        """An independent copy."""
        copy = object.__new__(DecodingState)
        copy.__dict__.update(self.__dict__)
        copy._buffer, copy.seen, copy.said = self._buffer.copy(), self.seen.copy(), self.said.copy()
        copy._addresses = None
        return copy

    def append(self, token: int) -> None:
        """`token` is the sequence's next."""
        if self._num_tokens == len(self._buffer):
            self._buffer = np.concatenate((self._buffer, np.zeros_like(self._buffer)))
            self._addresses = None
        self._buffer[self._num_tokens] = token
        self._num_tokens += 1
        self.unbroken = 0 if self._breaks(self._num_tokens) else min(self.unbroken + 1, MAX_MATCH)
        if self._is_matching:
            self.matches = extended_matches(self.matches, self.tokens)
        if len(self.seen):
            self._count(self._num_tokens - 1, 1)
            left = self._num_tokens - 1 - self._window
            if self._window >= 0 and left >= 0:
                self._count(left, -1)

    def is_breaker(self, token: int) -> bool:
        """Whether the token alone is a DRY sequence breaker: those are never penalised."""
        return (token,) in self._breakers

    def _count(self, index: int, change: int) -> None:
        token = self._buffer[index]
        self.seen[token] += change
        self.said[token] += change if index >= self._num_prompt else 0

    def _breaks(self, end: int) -> bool:
        """Whether a sequence breaker ends right before index `end`."""
        if not self._breakers:
            return False
        tokens = self._buffer[max(0, end - MAX_SEQUENCE_TOKENS) : end].tolist()
        return any(tuple(tokens[-length:]) in self._breakers for length in self._breaker_lengths)

    def _count_unbroken(self) -> int:
        longest = min(self._num_tokens, MAX_MATCH)
        return next((count for count in range(longest) if self._breaks(self._num_tokens - count)), longest)


def _counts(tokens: Sequence[int], size: int) -> Tokens:
    """How often each token occurs, [size]; nothing is counted where size is 0."""
    return np.bincount(tokens if size else (), minlength=size).astype(np.int32)


def _has_penalty(params: SamplingParams) -> bool:
    return params.repetition_penalty != 1.0 or params.presence_penalty != 0.0 or params.frequency_penalty != 0.0
