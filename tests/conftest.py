"""What holds for every test: one thread per process, as tests share the machine with each other and their servers."""

import os

# Before torch is imported; child processes inherit it. Two OpenMP threads that have to wait for a busy second core are
# slower by orders of magnitude than one. Tests about thread counts set their own.
os.environ.setdefault("OMP_NUM_THREADS", "1")
