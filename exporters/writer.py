"""Run a weight book's jobs: checkpoint tensors in, one weights file out.

Every initializer's place in the file is known before the first tensor is read, so
jobs write straight to it, in any order, and memory holds only the jobs under way.
"""

from __future__ import annotations

import shutil
import threading
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor, as_completed
from pathlib import Path
from typing import BinaryIO

import numpy as np
import onnx_ir as ir

from exporters.weight_book import Array, WeightBook, WeightJob
from lfm2_deploy.contracts import Checkpoint, Progress
from lfm2_deploy.errors import ExportError

# Page-aligned, so that a runtime may map a tensor instead of copying it.
_ALIGNMENT = 4096
_WORKERS = 2


def lay_out(book: WeightBook) -> dict[str, int]:
    """Give every declared initializer its offset, in bytes; aliases share one."""
    offsets: dict[str, int] = {}
    end = 0
    for declared in book.declared.values():
        if not declared.alias_of:
            offsets[declared.name] = end
            end += -(-declared.size_bytes // _ALIGNMENT) * _ALIGNMENT
    for declared in book.declared.values():
        if declared.alias_of:
            offsets[declared.name] = offsets[declared.alias_of]
    return offsets


def refer_to_file(book: WeightBook, offsets: Mapping[str, int], location: str) -> None:
    """Make the graph's initializers point into the weights file."""
    for name, declared in book.declared.items():
        book.values[name].const_value = ir.ExternalTensor(
            location,
            offsets[name],
            declared.size_bytes,
            declared.dtype,
            shape=ir.Shape(declared.shape),
            name=name,
        )


def write_weights(
    book: WeightBook,
    offsets: Mapping[str, int],
    checkpoint: Checkpoint,
    path: Path,
    progress: Progress,
) -> None:
    """Fill the weights file.

    Raises:
        ExportError: the disk cannot hold it.
        CheckpointError: a tensor cannot be read.
    """
    size = max((offsets[n] + d.size_bytes for n, d in book.declared.items()), default=0)
    free = shutil.disk_usage(path.parent).free
    if size > free:
        raise ExportError(
            f"{path.parent} has {free / 2**30:.2f} GiB free and the weights need "
            f"{size / 2**30:.2f} GiB; free some space or choose another folder"
        )
    with path.open("wb") as file, ThreadPoolExecutor(_WORKERS) as pool:
        file.truncate(size)
        writer = _Writer(book, offsets, checkpoint, file)
        futures = [pool.submit(writer.run, job) for job in book.jobs]
        try:
            for done, future in enumerate(as_completed(futures), 1):
                future.result()
                progress("writing weights", done, len(futures))
        except BaseException:
            pool.shutdown(cancel_futures=True)
            raise


class _Writer:
    def __init__(
        self, book: WeightBook, offsets: Mapping[str, int], checkpoint: Checkpoint, file: BinaryIO
    ) -> None:
        self.book, self.offsets, self.checkpoint, self.file = book, offsets, checkpoint, file
        # Windows has no pwrite: seeking and writing belong together.
        self.lock = threading.Lock()

    def run(self, job: WeightJob) -> None:
        arrays = job.encode(*(self.checkpoint.read(name) for name in job.sources))
        for slot, array in zip(job.slots, arrays, strict=True):
            self._put(slot.initializer, slot.index, array)

    def _put(self, name: str, index: int | None, array: Array) -> None:
        declared = self.book.declared[name]
        expected = declared.shape if index is None else declared.shape[1:]
        # MatMulNBits' [N, groups, blob] and plain rows hold the same bytes.
        if array.size != int(np.prod(expected)) or array.dtype != declared.dtype.numpy():
            raise ExportError(
                f"initializer {name} was given {array.dtype}{list(array.shape)}, "
                f"expected {declared.dtype.name}{list(expected)}"
            )
        data = np.ascontiguousarray(array)
        offset = self.offsets[name] + (index or 0) * data.nbytes
        with self.lock:
            self.file.seek(offset)
            self.file.write(data.data)
