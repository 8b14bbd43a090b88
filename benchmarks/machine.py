"""What this machine can do at most: bytes read and operations computed per second, by the native library's threads."""

import ctypes
import time
from collections.abc import Callable
from dataclasses import dataclass

# Far more than any cache holds, so that memory answers.
_READ_BYTES = 512 << 20
_REPEATS = 100_000
_ROUNDS = 7


@dataclass(frozen=True)
class Machine:
    """Bytes per second from memory, and operations (a multiplication and an addition are two) per second."""

    bandwidth: float
    peak: float

    def least_seconds(self, num_bytes: float, operations: float) -> float:
        """No step that reads and computes as much is quicker (the roofline: Williams et al. 2009)."""
        return max(num_bytes / self.bandwidth, operations / self.peak)


def clock_for(threads: int) -> Callable[[], float]:
    """Of one thread its processor time, which leaves out the turns of others; of several the wall clock."""
    return time.thread_time if threads == 1 else time.perf_counter


def measure_machine(library: ctypes.CDLL, instruction_set: str, weight_bytes: int, threads: int) -> Machine:
    """The best of several rounds. `weight_bytes` is that of a weight: 4 float32, 2 bfloat16, 1 int8.

    Raises MemoryError when there is no room to read from.
    """
    memory = library.minigpt_allocate(_READ_BYTES)
    if memory is None:
        raise MemoryError(f"no {_READ_BYTES} bytes to measure memory by")
    ctypes.memset(memory, 1, _READ_BYTES)
    read = _least_seconds(lambda: library.minigpt_read_memory(memory, _READ_BYTES // 8, threads), threads)
    library.minigpt_free(memory, _READ_BYTES)
    operations = ctypes.c_double()
    computed = _least_seconds(
        lambda: library.minigpt_compute_dots(instruction_set.encode(), weight_bytes, _REPEATS, threads, operations),
        threads,
    )
    return Machine(_READ_BYTES / read, operations.value / computed)


def _least_seconds(call: Callable[[], object], threads: int) -> float:
    clock, seconds = clock_for(threads), []
    for _ in range(_ROUNDS):
        started = clock()
        call()
        seconds.append(clock() - started)
    return min(seconds)
