"""Suffix decoding: the most frequent continuation of the longest suffix that has occurred before (Oliaro et al. 2024).

The index is a suffix automaton, built token by token in amortised constant time (Blumer et al. 1985).
"""

from collections.abc import Sequence

MIN_MATCH = 2  # tokens; what follows a single one is hardly better than the commonest token
# Occurrences are counted along suffix links, longest suffix first. In ordinary text that is a few steps; in a run of
# one token it is as many as the text is long, and only the longest suffixes matter.
_MAX_COUNTED = 32
_ROOT = 0
_NOWHERE = -1


class SuffixIndex:
    """A state stands for the substrings that end at the same places: how many, which last, and what follows them."""

    def __init__(self) -> None:
        self.num_tokens = 0
        self._follow: list[dict[int, int]] = [{}]  # token -> state
        self._link = [_NOWHERE]  # the state of the longest suffix that ends at more places
        self._length = [0]  # of a state's longest substring
        self._count = [0]
        self._latest = [0]
        self._whole = _ROOT  # the state of the whole text

    def extend(self, tokens: Sequence[int]) -> None:
        for token in tokens:
            self._append(token)
            self.num_tokens += 1
            self._count_suffixes()

    def continuation(self, count: int) -> tuple[int, ...]:
        """Follow the most frequent token, of equals the latest, from state to state."""
        found: list[int] = []
        state = self._link[self._whole]
        while len(found) < count:
            while state > _ROOT and not self._follow[state]:  # the end of the text: go on from a shorter suffix
                state = self._link[state]
            if state <= _ROOT or self._length[state] < MIN_MATCH:
                break
            follow = self._follow[state]
            token = max(follow, key=lambda candidate: self._weight(follow[candidate]))
            found.append(token)
            state = follow[token]
        return tuple(found)

    def _weight(self, state: int) -> tuple[int, int]:
        return self._count[state], self._latest[state]

    def _append(self, token: int) -> None:
        added = self._add_state({}, _ROOT, self._length[self._whole] + 1)
        state, self._whole = self._whole, added
        while state != _NOWHERE and token not in self._follow[state]:
            self._follow[state][token] = added
            state = self._link[state]
        if state == _NOWHERE:
            return
        known = self._follow[state][token]
        self._link[added] = known if self._length[known] == self._length[state] + 1 else self._split(state, token)

    def _split(self, state: int, token: int) -> int:
        """The shorter substrings of the state behind `token` now end at one more place: give them one of their own."""
        known = self._follow[state][token]
        copy = self._add_state(dict(self._follow[known]), self._link[known], self._length[state] + 1)
        self._count[copy], self._latest[copy] = self._count[known], self._latest[known]
        self._link[known] = copy
        while state != _NOWHERE and self._follow[state].get(token) == known:
            self._follow[state][token] = copy
            state = self._link[state]
        return copy

    def _add_state(self, follow: dict[int, int], link: int, length: int) -> int:
        self._follow.append(follow)
        self._link.append(link)
        self._length.append(length)
        self._count.append(0)
        self._latest.append(0)
        return len(self._link) - 1

    def _count_suffixes(self) -> None:
        state = self._whole
        for _ in range(_MAX_COUNTED):
            if state <= _ROOT:
                return
            self._count[state] += 1
            self._latest[state] = self.num_tokens
            state = self._link[state]
