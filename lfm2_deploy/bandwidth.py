"""How fast this machine reads memory, as numpy can tell."""

from __future__ import annotations

import time
from concurrent.futures import ThreadPoolExecutor

import numpy as np

# Larger than any cache of a laptop's.
_BYTES = 256 * 2**20
_ROUNDS = 5


def measure_bandwidth(threads: int) -> float:
    """Bytes a second that threads read together, the best of several rounds.

    A lower bound: numpy's `max` reads at nine tenths of what a tuned loop reaches.
    """
    numbers = np.ones(_BYTES // 4, np.float32)
    best = 0.0
    with ThreadPoolExecutor(threads) as pool:
        for _ in range(_ROUNDS):
            started = time.perf_counter()
            list(pool.map(np.max, np.array_split(numbers, threads)))
            best = max(best, _BYTES / (time.perf_counter() - started))
    return best
