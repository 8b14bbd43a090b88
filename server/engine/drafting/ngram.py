"""Prompt lookup: what followed the last few tokens when they last stood together (Saxena 2023, prompt-lookup-decoding).

Constant work per token: the index maps every n-gram to where its latest occurrence ended.
"""

from collections.abc import Sequence

MAX_NGRAM = 4
MIN_NGRAM = 2  # a single token has been followed by too many others to tell


class NgramIndex:
    """The n-grams of a growing text, each with the place behind its latest occurrence that has a continuation."""

    def __init__(self) -> None:
        self._tokens: list[int] = []
        self._behind: dict[tuple[int, ...], int] = {}

    @property
    def num_tokens(self) -> int:
        return len(self._tokens)

    def extend(self, tokens: Sequence[int]) -> None:
        for token in tokens:
            end = len(self._tokens)  # only now do the n-grams that end here have a continuation
            for size in range(MIN_NGRAM, min(MAX_NGRAM, end) + 1):
                self._behind[tuple(self._tokens[end - size :])] = end
            self._tokens.append(token)

    def continuation(self, count: int) -> tuple[int, ...]:
        """What followed the longest n-gram that ends the text; past the end of the text it repeats itself."""
        end = len(self._tokens)
        for size in range(min(MAX_NGRAM, end), MIN_NGRAM - 1, -1):
            start = self._behind.get(tuple(self._tokens[end - size :]))
            if start is not None:
                period = end - start
                return tuple(self._tokens[start + offset % period] for offset in range(count))
        return ()
