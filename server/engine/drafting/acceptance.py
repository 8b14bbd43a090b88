"""How often drafts prove right: per sequence, with what the whole core has seen as the prior. Knows no clock."""

from collections import defaultdict
from dataclasses import dataclass

from server.engine.types import DraftMethod

# What a method is credited with before it was ever tried, and how many positions it takes to change one's mind.
_FIRST_RATE, _FIRST_WEIGHT = 0.7, 8.0
# A sequence's own record outweighs the prior once it is longer than this.
_PRIOR_WEIGHT = 6.0
# What one more position leaves of the memory, so that some 30 of a sequence's count and 500 of the core's: a text
# changes sooner than drafters do on the whole.
_SEQUENCE_DECAY, _CORE_DECAY = 0.97, 0.998
# Rates are kept off 0 and 1, where a geometric law has no length.
_MIN_RATE, _MAX_RATE = 0.01, 0.99


@dataclass
class _Record:
    """Positions looked at and found right, older ones counting less."""

    hits: float = 0.0
    trials: float = 0.0

    def add(self, hits: float, trials: float, decay: float) -> None:
        kept = decay**trials
        self.hits = kept * self.hits + hits
        self.trials = kept * self.trials + trials


class Acceptance:
    """The probability that a draft is right, given that those before it were.

    Taken to be the same at every position (Leviathan et al. 2023, section 3.1), so that the chance of k right ones in a
    row is its k-th power.
    """

    def __init__(self) -> None:
        self._core: dict[DraftMethod, _Record] = defaultdict(
            lambda: _Record(_FIRST_RATE * _FIRST_WEIGHT, _FIRST_WEIGHT)
        )
        self._coverage: dict[DraftMethod, _Record] = defaultdict(lambda: _Record(_FIRST_WEIGHT, _FIRST_WEIGHT))
        self._sequences: dict[int, dict[DraftMethod, _Record]] = {}

    def record(self, method: DraftMethod, sequence_id: int, num_checked: int, num_accepted: int) -> None:
        """Of a sequence's drafts so many were compared with the model's tokens, and so many of them were right."""
        own = self._sequences.setdefault(sequence_id, {}).setdefault(method, _Record())
        own.add(num_accepted, num_checked, _SEQUENCE_DECAY)
        self._core[method].add(num_accepted, num_checked, _CORE_DECAY)

    def record_asked(self, method: DraftMethod, has_answered: bool) -> None:
        """The method was asked for drafts; a lookup may find none."""
        self._coverage[method].add(has_answered, 1.0, _CORE_DECAY)

    def rate(self, method: DraftMethod, sequence_id: int) -> float:
        """The probability for this sequence."""
        core = self._core[method]
        prior = core.hits / core.trials
        own = self._sequences.get(sequence_id, {}).get(method)
        if own is not None:
            prior = (own.hits + _PRIOR_WEIGHT * prior) / (own.trials + _PRIOR_WEIGHT)
        return min(max(prior, _MIN_RATE), _MAX_RATE)

    def coverage(self, method: DraftMethod) -> float:
        """How often the method has drafts to offer when asked."""
        record = self._coverage[method]
        return record.hits / record.trials

    def forget(self, sequence_id: int) -> None:
        self._sequences.pop(sequence_id, None)
