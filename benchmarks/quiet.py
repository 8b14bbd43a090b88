"""Whether the machine is quiet: a benchmark beside other work measures the other work."""

import time
from pathlib import Path

QUIET_SHARE = 0.05


def busy_share(seconds: float = 1.0) -> float | None:
    """Share of all processors' time that was used during the next `seconds`; None where the system does not tell."""
    before = _idle_and_total()
    if before is None:
        return None
    time.sleep(seconds)
    after = _idle_and_total()
    assert after is not None
    idle, total = after[0] - before[0], after[1] - before[1]
    return 1 - idle / total if total else 0.0


def await_quiet(share: float, tries: int = 60) -> float | None:
    """Wait while more than `share` is used, for so many seconds: a server that has just started still takes its cache's
    memory. What was used last, which may be more, or None as above."""
    busy = busy_share()
    while busy is not None and busy > share and (tries := tries - 1) > 0:
        busy = busy_share()
    return busy


def _idle_and_total() -> tuple[int, int] | None:
    """Clock ticks so far. See proc_stat(5): the fourth and fifth figures are idle, and idle waiting for a disk."""
    try:
        first_line, _ = Path("/proc/stat").read_text().split("\n", 1)
    except OSError:
        return None
    # The first eight: time of guests is counted under user already.
    ticks = [int(field) for field in first_line.split()[1:9]]
    return ticks[3] + ticks[4], sum(ticks)
