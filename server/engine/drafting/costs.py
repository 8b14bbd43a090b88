"""Seconds as a function of how many tokens are computed together, learned from what was measured. Knows no clock."""

from bisect import bisect_left, insort

from model.kernels import ROW_TILE

# How much the newest measurement counts: after some ten, older ones have little say.
_NEWEST_SHARE = 0.1
# A hiccup of the machine must not look like the price of a size: one measurement at most doubles it.
_MAX_GROWTH = 2.0
# Beyond what was measured, so much of the time is taken to grow with the number of tokens: little above, nearly all
# below. Too cheap a guess is found out by the next step; too dear a one never would be.
_GROWING_ABOVE, _GROWING_BELOW = 0.1, 0.9
# A size not measured for so many steps is forgotten, so that one that looked dear is tried again.
_REMEMBERED_RECORDS = 1000


class CostCurve:
    """The mean seconds of each size, in whole row tiles, as the kernels round it up too."""

    def __init__(self) -> None:
        self._tiles: list[int] = []  # ascending
        self._seconds: dict[int, float] = {}
        self._num_records: dict[int, int] = {}
        self._recorded_at: dict[int, int] = {}
        self._now = 0

    def record(self, num_tokens: int, seconds: float) -> bool:
        """So many tokens took so long. Returns whether nothing was known of that size."""
        tile = _tiles(num_tokens)
        self._now += 1
        self._recorded_at[tile] = self._now
        count = self._num_records.get(tile, 0) + 1
        self._num_records[tile] = count
        if count == 1:
            insort(self._tiles, tile)
            self._seconds[tile] = seconds
        else:
            old = self._seconds[tile]
            self._seconds[tile] += max(1.0 / count, _NEWEST_SHARE) * (min(seconds, _MAX_GROWTH * old) - old)
        if self._now % _REMEMBERED_RECORDS == 0:
            self._forget_old()
        return count == 1

    def estimate(self, num_tokens: int) -> float:
        """Seconds for so many tokens: measured, between two neighbours, or beyond one. 0 while nothing is known."""
        tile = _tiles(num_tokens)
        if tile in self._seconds:
            return self._seconds[tile]
        place = bisect_left(self._tiles, tile)
        if not self._tiles:
            return 0.0
        if 0 < place < len(self._tiles):
            below, above = self._tiles[place - 1], self._tiles[place]
            share = (tile - below) / (above - below)
            return (1 - share) * self._seconds[below] + share * self._seconds[above]
        known = self._tiles[min(place, len(self._tiles) - 1)]
        growing = _GROWING_ABOVE if tile > known else _GROWING_BELOW
        return self._seconds[known] * (1 + growing * (tile / known - 1))

    def _forget_old(self) -> None:
        for tile in self._tiles[:]:
            if self._now - self._recorded_at[tile] >= _REMEMBERED_RECORDS:
                self._tiles.remove(tile)
                for table in (self._seconds, self._num_records, self._recorded_at):
                    del table[tile]


def _tiles(num_tokens: int) -> int:
    return max(1, -(-num_tokens // ROW_TILE))
