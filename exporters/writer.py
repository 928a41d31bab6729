"""Encoded weights in, one weights file out, and what rounding took from each.

Every initializer's place in the file is known before the first tensor is read, so
jobs are written in whatever order they end, and memory holds only those under way.
"""

from __future__ import annotations

import errno
import os
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import onnx_ir as ir

from exporters.encoding import EncodeJobs
from exporters.journal import Journal
from exporters.quantize.losses import Sums
from exporters.weight_book import Array, Slot, WeightBook, WeightJob
from lfm2_deploy.contracts import Progress
from lfm2_deploy.errors import DiskFullError, ExportError

# Page-aligned, so that a runtime may map a tensor instead of copying it.
_ALIGNMENT = 4096
WRITING = "writing weights"


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


def refer_to_file(
    graph: ir.Graph, book: WeightBook, offsets: Mapping[str, int], location: str
) -> None:
    """Make a graph's initializers point into the weights file."""
    for name, value in graph.initializers.items():
        declared = book.declared.get(name)
        if declared is None:
            continue  # a constant, kept in the graph itself
        value.const_value = ir.ExternalTensor(
            location,
            offsets[name],
            declared.size_bytes,
            declared.dtype,
            shape=ir.Shape(declared.shape),
            name=name,
        )


def measure(book: WeightBook, offsets: Mapping[str, int]) -> int:
    """Size of the weights file, in bytes."""
    return max((offsets[n] + d.size_bytes for n, d in book.declared.items()), default=0)


def write_weights(
    book: WeightBook,
    offsets: Mapping[str, int],
    encode: EncodeJobs,
    path: Path,
    journal: Journal,
    progress: Progress,
) -> list[dict[str, Sums]]:
    """Fill the weights file, beginning where the journal ends.

    Args:
        book: what there is to write.
        offsets: where, from `lay_out`.
        encode: runs jobs.
        path: the file; what it holds already is what the journal says.
        journal: of this very export.
        progress: told of the bytes written.

    Returns:
        What rounding took from each job's sources, in the order of the jobs; those of an
        interrupted run come from the journal.

    Raises:
        DiskFullError: the disk cannot hold it.
        CheckpointError: a tensor cannot be read.
    """
    size = measure(book, offsets)
    done = journal.read() if path.is_file() and path.stat().st_size == size else None
    _require_space(path, size)
    try:
        with path.open("r+b" if done is not None else "w+b") as file, journal:
            file.truncate(size)
            journal.begin(goes_on=done is not None)
            writer = _Writer(book, offsets, file)
            return _fill(writer, encode, done or {}, journal, progress)
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
            raise DiskFullError(
                f"{path.parent} is full ({error.strerror}) with part of {format_gib(size)} of "
                "weights written: free some space and go on with --resume"
            ) from error
        raise


def _fill(
    writer: _Writer,
    encode: EncodeJobs,
    done: Mapping[int, Any],
    journal: Journal,
    progress: Progress,
) -> list[dict[str, Sums]]:
    sizes = [writer.measure(job) for job in writer.book.jobs]
    total, written = sum(sizes), sum(sizes[number] for number in done)
    progress(WRITING, written, total)
    notes = dict(done)
    pending = (number for number in range(len(sizes)) if number not in done)
    encoded = encode(pending)
    try:
        for number, result in encoded:
            writer.put(writer.book.jobs[number], result.arrays)
            notes[number] = {name: [s.lost, s.whole] for name, s in result.losses.items()}
            journal.add(number, notes[number], writer.sync)
            written += sizes[number]
            progress(WRITING, written, total)
    finally:
        # What is encoded still runs in threads: they end before the file is closed. An
        # interruption keeps all that was written.
        encoded.close()
        journal.sync(writer.sync)
    # Floats come back from JSON as they were.
    return [{name: Sums(*s) for name, s in notes[n].items()} for n in range(len(sizes))]


def _require_space(path: Path, size: int) -> None:
    """Refuse, before anything is written, what the disk cannot hold."""
    held = _allocated(path) if path.is_file() else 0
    free = shutil.disk_usage(path.parent).free
    if size - held > free:
        raise DiskFullError(
            f"{path.parent} has {format_gib(free)} free and the weights need "
            f"{format_gib(size - held)}; free some space or choose another folder"
        )


def _allocated(path: Path) -> int:
    # A file that was interrupted has holes; Windows does not tell.
    blocks: int | None = getattr(path.stat(), "st_blocks", None)
    return 0 if blocks is None else 512 * blocks


def format_gib(size: int) -> str:
    """A size as "1.25 GiB"."""
    return f"{size / 2**30:.2f} GiB"


class _Writer:
    def __init__(self, book: WeightBook, offsets: Mapping[str, int], file: BinaryIO) -> None:
        self.book, self.offsets, self.file = book, offsets, file

    def measure(self, job: WeightJob) -> int:
        """Bytes a job writes."""
        return sum(self._slot_size(slot) for slot in job.slots)

    def put(self, job: WeightJob, arrays: Sequence[Array]) -> None:
        """Write what a job made."""
        for slot, array in zip(job.slots, arrays, strict=True):
            self._check(slot, array)
            data = np.ascontiguousarray(array)
            self.file.seek(self.offsets[slot.initializer] + (slot.index or 0) * data.nbytes)
            self.file.write(data.data)

    def sync(self) -> None:
        """Force what was written to the disk."""
        self.file.flush()
        os.fsync(self.file.fileno())

    def _slot_size(self, slot: Slot) -> int:
        declared = self.book.declared[slot.initializer]
        return declared.size_bytes // (1 if slot.index is None else declared.shape[0])

    def _check(self, slot: Slot, array: Array) -> None:
        declared = self.book.declared[slot.initializer]
        expected = declared.shape if slot.index is None else declared.shape[1:]
        # MatMulNBits' [N, groups, blob] and plain rows hold the same bytes, and two of 4
        # bits come packed in one.
        packed = declared.dtype.itemsize < 1
        dtype = np.dtype(np.uint8) if packed else declared.dtype.numpy()
        if array.nbytes != int(np.prod(expected) * declared.dtype.itemsize) or array.dtype != dtype:
            raise ExportError(
                f"initializer {declared.name} was given {array.dtype}{list(array.shape)}, "
                f"expected {declared.dtype.name}{list(expected)}"
            )
