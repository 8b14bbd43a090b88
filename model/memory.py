"""How much memory a device can still give. Knows no model."""

from pathlib import Path

import torch

_CONTROL_GROUP = Path("/sys/fs/cgroup")
_MEMORY_INFO = Path("/proc/meminfo")


def available_bytes(device: torch.device) -> int | None:
    """Bytes that can be allocated on `device` now; None where the system does not say."""
    if device.type != "cpu":
        return torch.accelerator.get_memory_info(device)[0]
    known = [size for size in (_system_bytes(_MEMORY_INFO), _container_bytes(_CONTROL_GROUP)) if size is not None]
    return min(known, default=None)


def _system_bytes(memory_info: Path) -> int | None:
    """What Linux estimates can be had without swapping."""
    if not memory_info.exists():
        return None
    for line in memory_info.read_text().splitlines():
        name, _, rest = line.partition(":")
        if name == "MemAvailable":
            return int(rest.split()[0]) * 1024
    return None


def _container_bytes(group: Path) -> int | None:
    """What a container's limit leaves; page cache counts as used there but is given back when needed."""
    limit, current, stat = group / "memory.max", group / "memory.current", group / "memory.stat"
    if not (limit.exists() and current.exists() and stat.exists()) or limit.read_text().strip() == "max":
        return None
    fields = dict(line.split() for line in stat.read_text().splitlines())
    reclaimable = int(fields.get("inactive_file", 0)) + int(fields.get("active_file", 0))
    return max(0, int(limit.read_text()) - int(current.read_text()) + reclaimable)
