"""When an open loop sends: arrival times drawn before the first request, a pure function of the seed."""

import numpy as np


def poisson_arrivals(
    rate: float, num_requests: int | None, duration_seconds: float | None, seed: tuple[int, ...]
) -> list[float]:
    """Seconds from the start, rising, with independent exponential gaps of mean 1 / rate.

    Ends before `num_requests` or `duration_seconds`, whichever comes first; at least one of them must be given.
    """
    assert num_requests is not None or duration_seconds is not None
    rng = np.random.default_rng(seed)
    if num_requests is None:
        assert duration_seconds is not None
        # Six standard deviations over the mean, so that one draw all but surely covers the duration.
        expected = rate * duration_seconds
        num_requests = int(expected + 6 * expected**0.5 + 10)
    times = np.cumsum(rng.exponential(1 / rate, num_requests))
    if duration_seconds is not None:
        times = times[times < duration_seconds]
    return [float(time) for time in times]
