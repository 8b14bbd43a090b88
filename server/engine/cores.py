"""How many processor cores this process may keep busy. Knows no engine."""

import os
from pathlib import Path

_CPU_LIMIT = Path("/sys/fs/cgroup/cpu.max")


def available_cores() -> int:
    """The cores it may run on, or the whole cores' worth of time that a container's limit gives if that is less."""
    allowed = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    limit = _container_cores(_CPU_LIMIT)
    return allowed if limit is None else max(1, min(allowed, limit))


def _container_cores(cpu_limit: Path) -> int | None:
    """Of version 2 of Linux's control groups: microseconds of time (or "max") in each period of so many."""
    if not cpu_limit.exists():
        return None
    quota, period = cpu_limit.read_text().split()
    return None if quota == "max" else int(quota) // int(period)
