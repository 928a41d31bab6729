"""Weight jobs -> encoded arrays, on this machine's cores.

Enters: a checkpoint and numbered jobs. Leaves: (number, arrays) in the order they are
ready. As many jobs are under way as there are workers, so memory is bounded by so many
of the largest, whatever the model's size. `cluster.py` does the same on other machines.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Generator, Iterable, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from itertools import islice
from typing import TypeAlias

from exporters.weight_book import Array, WeightJob
from lfm2_deploy.contracts import Checkpoint

Encoded: TypeAlias = tuple[int, Sequence[Array]]
# Pending numbers in, encoded jobs out.
EncodeJobs: TypeAlias = Callable[[Iterable[int]], Generator[Encoded]]

# More would need more memory, and two keep a laptop's memory and disk busy.
_MOST_WORKERS = 2


def run_job(job: WeightJob, checkpoint: Checkpoint) -> Sequence[Array]:
    """Read a job's tensors and encode them.

    Raises:
        CheckpointError: a tensor cannot be read.
        ExportError: it does not fit its precision.
    """
    return job.encode(*(checkpoint.read(name) for name in job.sources))


def encode_here(jobs: Sequence[WeightJob], checkpoint: Checkpoint) -> EncodeJobs:
    """An `EncodeJobs` that uses threads: numpy's arithmetic and file reads run side by side."""

    def encode(pending: Iterable[int]) -> Generator[Encoded]:
        numbers = iter(pending)
        workers = min(_MOST_WORKERS, os.cpu_count() or 1)
        with ThreadPoolExecutor(workers) as pool:
            running: dict[Future[Sequence[Array]], int] = {}
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
