"""Metric families for one writing thread: no locks, every series there from the start, observations in batches.

prometheus_client's own counters and histograms lock on every call and search their buckets one by one, which is too
dear for something done per token; its registry, exposition and process collectors are used as they are.
"""

from bisect import bisect_left
from collections.abc import Iterator, Mapping, Sequence
from itertools import accumulate, product

from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily, Metric

# Label name to all the values it may take; a series exists for every combination from the start, and no other ever.
LabelSets = Mapping[str, Sequence[str]]


class Counter:
    """A total that only grows."""

    def __init__(self, name: str, text: str, labels: LabelSets) -> None:
        self.name = name
        self.text = text
        self._labels = labels
        self._values: dict[tuple[str, ...], float] = dict.fromkeys(product(*labels.values()), 0.0)

    def add(self, amount: float, *labels: str) -> None:
        """Raises KeyError for labels that were not declared."""
        self._values[labels] += amount

    def collect(self) -> Iterator[Metric]:
        family = CounterMetricFamily(self.name, self.text, labels=list(self._labels))
        for labels, value in self._values.items():
            family.add_metric(labels, value)
        yield family


class Gauge:
    """A value of the moment."""

    def __init__(self, name: str, text: str, labels: LabelSets) -> None:
        self.name = name
        self.text = text
        self._labels = labels
        self._values: dict[tuple[str, ...], float] = dict.fromkeys(product(*labels.values()), 0.0)

    def set(self, value: float, *labels: str) -> None:
        """Raises KeyError for labels that were not declared."""
        if labels not in self._values:
            raise KeyError(labels)
        self._values[labels] = value

    def add(self, amount: float, *labels: str) -> None:
        """Raises KeyError for labels that were not declared."""
        self._values[labels] += amount

    def collect(self) -> Iterator[Metric]:
        family = GaugeMetricFamily(self.name, self.text, labels=list(self._labels))
        for labels, value in self._values.items():
            family.add_metric(labels, value)
        yield family


class Histogram:
    """Observations counted in buckets up to each of `bounds` (ascending), and above the last."""

    def __init__(self, name: str, text: str, labels: LabelSets, bounds: Sequence[float]) -> None:
        self.name = name
        self.text = text
        self._labels = labels
        self._bounds = tuple(bounds)
        self._names = [*map(str, self._bounds), "+Inf"]
        keys = list(product(*labels.values()))
        self._counts = {key: [0] * len(self._names) for key in keys}
        self._sums = dict.fromkeys(keys, 0.0)

    def observe(self, value: float, *labels: str, count: int = 1) -> None:
        """Count `value` `count` times. Raises KeyError for labels that were not declared."""
        self._counts[labels][bisect_left(self._bounds, value)] += count
        self._sums[labels] += value * count

    def collect(self) -> Iterator[Metric]:
        family = HistogramMetricFamily(self.name, self.text, labels=list(self._labels))
        for labels, counts in self._counts.items():
            buckets = [(name, float(total)) for name, total in zip(self._names, accumulate(counts), strict=True)]
            family.add_metric(labels, buckets, self._sums[labels])
        yield family
