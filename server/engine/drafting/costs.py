"""Seconds as a function of how many tokens are computed together, learned from what was measured. Knows no clock."""

import math
from bisect import bisect_left, insort

# How much the newest measurement says about its size, after the first few, and about how fast the machine is just now.
_NEWEST_SHARE, _PACE_SHARE = 0.05, 0.1
_SHORTEST_SECONDS = 1e-9  # a clock may not have moved
# In the logarithm of seconds: a measurement further off counts as no more, so that a hiccup of the machine is not taken
# for the price of a size; the first few of a size may be corrected by more.
_MOST_NEWS, _MOST_EARLY_NEWS = 0.3, 4.0
# Beyond what was measured, so much of the time is taken to grow with the number of tokens: little above, nearly all
# below. Too cheap a guess is found out by the next step; too dear a one never would be.
_GROWING_ABOVE, _GROWING_BELOW = 0.1, 0.9
# A size not measured for so many steps is forgotten, so that one that looked dear is tried again.
_REMEMBERED_RECORDS = 1000
# Sizes that differ by less than this share of themselves are one; up to twice this number each is measured by itself.
_SIZES_PER_OCTAVE = 8


class CostCurve:
    """The typical seconds of each size; sizes are exact where a token more can cost much, and coarse where it cannot.

    Other work slows all sizes down alike, and only those in use are measured. So what is kept of a size is its price at
    the usual pace, and beside it how far the machine is off that pace: a size last measured on a busy machine can be
    compared with one that is measured now.
    """

    def __init__(self) -> None:
        self._sizes: list[int] = []  # ascending
        self._prices: dict[int, float] = {}  # logarithms of seconds
        self._num_records: dict[int, int] = {}
        self._recorded_at: dict[int, int] = {}
        self._pace = 0.0  # what is to be added to every price
        self._now = 0

    def record(self, num_tokens: int, seconds: float) -> bool:
        """So many tokens took so long. Returns whether nothing was known of that size."""
        size = _size(num_tokens)
        price = math.log(max(seconds, _SHORTEST_SECONDS)) - self._pace
        self._now += 1
        self._recorded_at[size] = self._now
        count = self._num_records.get(size, 0) + 1
        self._num_records[size] = count
        if count == 1:
            insort(self._sizes, size)
            self._prices[size] = price
        else:
            most = max(_MOST_NEWS, _MOST_EARLY_NEWS / count)
            news = min(max(price - self._prices[size], -most), most)
            self._prices[size] += max(1.0 / count, _NEWEST_SHARE) * news
            self._pace += _PACE_SHARE * min(max(news, -_MOST_NEWS), _MOST_NEWS)
        if self._now % _REMEMBERED_RECORDS == 0:
            self._forget_old()
        return count == 1

    def estimate(self, num_tokens: int) -> float:
        """Seconds for so many tokens: measured, between two neighbours, or beyond one. 0 while nothing is known."""
        size = _size(num_tokens)
        if size in self._prices:
            return self._seconds(size)
        place = bisect_left(self._sizes, size)
        if not self._sizes:
            return 0.0
        if 0 < place < len(self._sizes):
            below, above = self._sizes[place - 1], self._sizes[place]
            share = (size - below) / (above - below)
            return (1 - share) * self._seconds(below) + share * self._seconds(above)
        known = self._sizes[min(place, len(self._sizes) - 1)]
        growing = _GROWING_ABOVE if size > known else _GROWING_BELOW
        return self._seconds(known) * (1 + growing * (size / known - 1))

    def _seconds(self, size: int) -> float:
        return math.exp(self._prices[size] + self._pace)

    def _forget_old(self) -> None:
        for size in self._sizes[:]:
            if self._now - self._recorded_at[size] >= _REMEMBERED_RECORDS:
                self._sizes.remove(size)
                for table in (self._prices, self._num_records, self._recorded_at):
                    del table[size]


def _size(num_tokens: int) -> int:
    """The size that stands for `num_tokens`: the same up to 16, then even numbers, from 32 on multiples of 4, ..."""
    num_tokens = max(1, num_tokens)
    step = max(1, (1 << num_tokens.bit_length() - 1) // _SIZES_PER_OCTAVE)
    return -(-num_tokens // step) * step
