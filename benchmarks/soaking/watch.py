"""What a process holds, sampled, and whether it grows.

Read from /proc, so on Linux only; elsewhere there are no samples, and nothing is judged.
"""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import combinations
from pathlib import Path

_MOST_POINTS = 300


@dataclass(frozen=True, slots=True)
class Sample:
    """What a process holds at one moment.

    Args:
        at: seconds since the begin.
        rss_mib: memory that is resident.
        files, threads: open descriptors, sockets included, and threads.
    """

    at: float
    rss_mib: float
    files: int
    threads: int


def take_sample(pid: int, at: float) -> Sample | None:
    """Look at a process; None where that cannot be done."""
    place = Path("/proc") / str(pid)
    try:
        lines = (place / "status").read_text().splitlines()
        told = dict(line.split(":", 1) for line in lines if ":" in line)
        files = len([*(place / "fd").iterdir()])
        return Sample(at, int(told["VmRSS"].split()[0]) / 1024, files, int(told["Threads"]))
    except (OSError, KeyError):
        return None


def slope(points: Sequence[tuple[float, float]]) -> float:
    """Theil and Sen's: the median slope of all pairs, which single peaks do not move.

    Args:
        points: times and values; at most 300 of them, evenly chosen, are used.
    """
    few = points[:: -(-len(points) // _MOST_POINTS) or 1]
    slopes = [(b[1] - a[1]) / (b[0] - a[0]) for a, b in combinations(few, 2) if b[0] > a[0]]
    return statistics.median(slopes) if slopes else 0.0


def after_warm_up(samples: Sequence[Sample], part: float = 0.2) -> list[Sample]:
    """Samples without the first part of the time."""
    if not samples:
        return []
    begin = samples[0].at + part * (samples[-1].at - samples[0].at)
    return [sample for sample in samples if sample.at >= begin]
