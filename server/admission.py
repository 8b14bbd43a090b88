"""Whether one more request fits: the bounds on one model's queue, and when to come back. Integers and a clock only."""

import math
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass

from server.errors import BadRequest, QueueFull

# Long enough to smooth over one slow request, short enough to follow a change of load.
NUM_RECENT_DEPARTURES = 64
MAX_RETRY_AFTER_SECONDS = 60


@dataclass(frozen=True)
class QueueLimits:
    """Bounds per model: sequences accepted and not yet scheduled, and sequences open in any state."""

    max_waiting: int
    max_open: int


class Admission:
    """Counts one model's sequences from acceptance, through their first step, to their end."""

    def __init__(self, limits: QueueLimits, clock: Callable[[], float]) -> None:
        self.num_waiting = 0
        self.num_open = 0
        self._limits = limits
        self._clock = clock
        self._departures: deque[float] = deque(maxlen=NUM_RECENT_DEPARTURES)

    def check(self, num_sequences: int) -> None:
        """Raises QueueFull, or BadRequest for more than could ever be accepted."""
        limits = self._limits
        if num_sequences > limits.max_waiting:
            message = f"the request asks for {num_sequences} sequences; the queue holds {limits.max_waiting}"
            raise BadRequest(message, "n", "too_many_sequences")
        excess = max(
            self.num_waiting + num_sequences - limits.max_waiting, self.num_open + num_sequences - limits.max_open
        )
        if excess > 0:
            raise QueueFull(self._retry_after_seconds(excess))

    def enter(self, num_sequences: int) -> None:
        """Accept all or none. Raises what `check` raises."""
        self.check(num_sequences)
        self.num_waiting += num_sequences
        self.num_open += num_sequences

    def schedule(self) -> None:
        """A waiting sequence had its first step."""
        self.num_waiting -= 1

    def leave(self, was_scheduled: bool) -> None:
        """A sequence has ended."""
        self.num_open -= 1
        self.num_waiting -= not was_scheduled
        self._departures.append(self._clock())

    def _retry_after_seconds(self, excess: int) -> int:
        """When `excess` more sequences will have left, if they go on leaving as they did of late."""
        if not self._departures:
            return 1
        seconds_per_departure = (self._clock() - self._departures[0]) / len(self._departures)
        return max(1, min(MAX_RETRY_AFTER_SECONDS, math.ceil(excess * seconds_per_departure)))
