"""Weight jobs -> encoded arrays and what rounding took, on this machine's cores.

Enters: a checkpoint and numbered jobs. Leaves: (number, encoded) in the order they are
ready. As many jobs are under way as there are workers, so memory is bounded by so many
of the largest, whatever the model's size. `cluster.py` does the same on other machines.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Generator, Iterable, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from dataclasses import dataclass
from itertools import islice
from typing import TypeAlias

from exporters.quantize.losses import Sums
from exporters.weight_book import Array, WeightJob
from lfm2_deploy.contracts import Checkpoint


@dataclass(frozen=True, slots=True)
class Encoded:
    """What a job made.

    Args:
        arrays: one for each of its slots.
        losses: what rounding took from each source, by name; empty where nothing is rounded.
    """

    arrays: tuple[Array, ...]
    losses: dict[str, Sums]


# Pending numbers in, encoded jobs out.
EncodeJobs: TypeAlias = Callable[[Iterable[int]], Generator[tuple[int, Encoded]]]

# More would need more memory, and two keep a laptop's memory and disk busy.
_MOST_WORKERS = 2


def run_job(job: WeightJob, checkpoint: Checkpoint) -> Encoded:
    """Read a job's tensors, encode them and measure what that took.

    Raises:
        CheckpointError: a tensor cannot be read.
        ExportError: it does not fit its precision.
    """
    sources = [checkpoint.read(name) for name in job.sources]
    arrays = tuple(job.encode(*sources))
    found = () if job.measure is None else job.measure(sources, arrays)
    # Nothing is measured, or every source is.
    losses = dict(zip(job.sources, found, strict=True)) if found else {}
    return Encoded(arrays, losses)


def encode_here(jobs: Sequence[WeightJob], checkpoint: Checkpoint) -> EncodeJobs:
    """An `EncodeJobs` that uses threads: numpy's arithmetic and file reads run side by side."""

    def encode(pending: Iterable[int]) -> Generator[tuple[int, Encoded]]:
        numbers = iter(pending)
        workers = min(_MOST_WORKERS, os.cpu_count() or 1)
        with ThreadPoolExecutor(workers) as pool:
            running: dict[Future[Encoded], int] = {}
            try:
                while True:
                    for number in islice(numbers, workers - len(running)):
                        running[pool.submit(run_job, jobs[number], checkpoint)] = number
                    if not running:
                        return
                    for future in wait(running, return_when=FIRST_COMPLETED).done:
                        yield running.pop(future), future.result()
            finally:
                pool.shutdown(cancel_futures=True)

    return encode
