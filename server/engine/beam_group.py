"""The rules of beam search for one group of beams: which continuations live on, which end, and when it is over.

They are those of transformers (`GenerationMixin._beam_search`), so that scores compare. Knows no torch and no engine.
"""

from collections.abc import Collection, Sequence
from dataclasses import dataclass

from server.engine.types import BeamSearch


@dataclass(frozen=True)
class Candidate:
    """A beam's continuation by one token."""

    total: float  # sum of the log-probabilities of all its tokens
    beam: int  # index of the beam it continues
    token: int


@dataclass(frozen=True)
class Ended:
    """A hypothesis: a continuation after which nothing comes."""

    candidate: Candidate
    score: float  # total / length ** length_penalty
    is_last: bool  # ended by the limit of tokens rather than by a token


class BeamGroup:
    """A group's finished hypotheses. `Hypothesis` is whatever the caller makes of an `Ended`."""

    def __init__(self, rules: BeamSearch, max_tokens: int, endings: Collection[int]) -> None:
        self.size = rules.width // rules.num_groups
        self.scores: list[float] = []  # of the hypotheses kept, best first
        self.is_done = False
        self._rules = rules
        self._max_tokens = max_tokens
        self._endings = frozenset(endings)

    def split(self, candidates: Sequence[Candidate], length: int) -> tuple[list[Candidate], list[Ended]]:
        """Those that live on, at most `size`, and those that end.

        `candidates` are all worth considering, best first, each with `length` tokens of output. An ending one counts
        only among the `size` best; further ones take the place of those that ended.
        """
        is_last = length == self._max_tokens
        ended = [
            Ended(candidate, self._score(candidate.total, length), is_last and candidate.token not in self._endings)
            for candidate in candidates[: self.size]
            if is_last or candidate.token in self._endings
        ]
        going_on = [candidate for candidate in candidates if candidate.token not in self._endings]
        return [] if is_last else going_on[: self.size], ended

    def keep(self, score: float) -> int | None:
        """The rank of a new hypothesis among the `size` best, ties behind earlier ones; None when it is not one."""
        rank = sum(kept >= score for kept in self.scores)
        if rank >= self.size:
            return None
        self.scores.insert(rank, score)
        del self.scores[self.size :]
        return rank

    def settle(self, living: Sequence[Candidate], length: int) -> None:
        """Decide whether the search is over, given those that live on, best first, and have `length` tokens."""
        if not living:
            self.is_done = True
        elif len(self.scores) == self.size:
            self.is_done = self._rules.early_stopping is True or self._attainable(living[0], length) <= self.scores[-1]

    def _attainable(self, best: Candidate, length: int) -> float:
        """What the best living beam may yet score: as if its tokens to come were certain, which also is a heuristic
        where early_stopping is false (they are taken to be none) or the exponent negative."""
        is_never = self._rules.early_stopping == "never"
        return self._score(best.total, self._max_tokens if is_never and self._rules.length_penalty > 0.0 else length)

    def _score(self, total: float, length: int) -> float:
        return float(total / length**self._rules.length_penalty)
