"""One *.safetensors file: what its header says, and its numbers as float32.

Enters: a path. Leaves: a `StoredTensor` for each tensor, and any run of a tensor's
elements. Knows nothing of models. Files are read here rather than with the
`safetensors` package because its numpy side knows no bfloat16 and reads no less
than whole tensors, while one expert of a fused tensor is a sixty-fourth of it.

Source: the format, https://github.com/huggingface/safetensors#format: eight bytes
with the header's length, the header as JSON, then the data.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Any

import numpy as np

from lfm2_deploy.contracts import FloatArray
from lfm2_deploy.errors import CheckpointError

DTYPE_BYTES: Mapping[str, int] = {"F32": 4, "F16": 2, "BF16": 2}
_LENGTH_BYTES = 8
# The safetensors format's own limit.
_LARGEST_HEADER_BYTES = 100_000_000
# What reading a header raises where it says anything else than it should.
_CORRUPT = (ValueError, TypeError, KeyError, AttributeError, RecursionError, OverflowError)
# Elements converted at a time: what is needed beyond the result stays at a few MB.
_CHUNK = 1 << 20


@dataclass(frozen=True, slots=True)
class StoredTensor:
    """A tensor as a file's header describes it.

    Args:
        name: its name in the file.
        file: the file.
        dtype: the format's name of the element type, such as "BF16".
        shape: dimensions, outermost first.
        offset: bytes from the start of the file to its first element.
    """

    name: str
    file: Path
    dtype: str
    shape: tuple[int, ...]
    offset: int


def read_header(file: Path) -> dict[str, StoredTensor]:
    """Every tensor of a file, by name; no tensor is read.

    Raises:
        CheckpointError: the header is corrupt, or promises more bytes than the file has.
    """
    size = file.stat().st_size
    first = read_bytes(file, 0, min(size, _LENGTH_BYTES))
    if first == b"version ":
        raise CheckpointError(
            f"{file} is a Git LFS pointer, not the weights; run 'git lfs pull' in its folder"
        )
    data_start = _LENGTH_BYTES + int.from_bytes(first, "little")
    if data_start > size:
        raise CheckpointError(
            f"{file} is truncated or no safetensors file: its header should end at byte "
            f"{data_start}, the file has {size}; download it again"
        )
    length = data_start - _LENGTH_BYTES
    if length > _LARGEST_HEADER_BYTES:
        raise CheckpointError(
            f"{file} has a header of {length:,} bytes, above the format's limit of "
            f"{_LARGEST_HEADER_BYTES:,}; download it again"
        )
    header = read_bytes(file, _LENGTH_BYTES, length)
    try:
        entries = json.loads(header)
        entries.pop("__metadata__", None)
        tensors = {
            name: _parse_entry(name, entry, file, data_start, size)
            for name, entry in entries.items()
        }
    except _CORRUPT as error:
        raise CheckpointError(
            f"{file} has a corrupt header ({type(error).__name__}: {error}); download it again"
        ) from error
    return tensors


def _parse_entry(
    name: str, entry: Mapping[str, Any], file: Path, data_start: int, size: int
) -> StoredTensor:
    begin, end = map(int, entry["data_offsets"])
    shape = tuple(map(int, entry["shape"]))
    dtype = str(entry["dtype"])
    if not 0 <= begin <= end or min(shape, default=0) < 0:
        raise ValueError(f"{name} has shape {list(shape)} at bytes [{begin}, {end})")
    expected = prod(shape) * DTYPE_BYTES[dtype] if dtype in DTYPE_BYTES else end - begin
    if end - begin != expected:
        raise ValueError(f"{name} has {end - begin} bytes, expected {expected}")
    if data_start + end > size:
        raise CheckpointError(
            f"{file} is truncated: {name} should end at byte {data_start + end}, the file "
            f"has {size}; download it again"
        )
    return StoredTensor(name, file, dtype, shape, data_start + begin)


def read_floats(tensor: StoredTensor, start: int, count: int) -> FloatArray:
    """A run of a tensor's elements, in row-major order; nothing else of it is read.

    Args:
        tensor: one whose dtype is in `DTYPE_BYTES`.
        start: its first element wanted.
        count: how many elements.

    Returns:
        float32 [count], newly allocated.

    Raises:
        CheckpointError: the file has become shorter since its header was read.
    """
    width = DTYPE_BYTES[tensor.dtype]
    values = np.empty(count, np.float32)
    for done in range(0, count, _CHUNK):
        chunk = min(_CHUNK, count - done)
        data = read_bytes(tensor.file, tensor.offset + (start + done) * width, chunk * width)
        values[done : done + chunk] = _widen(data, tensor.dtype)
    return values


def _widen(data: bytes, dtype: str) -> FloatArray:
    if dtype == "BF16":
        # A bfloat16 is the upper half of the float32 of the same value.
        halves = np.frombuffer(data, "<u2").astype(np.uint32)
        return (halves << 16).view(np.float32)
    return np.frombuffer(data, "<f2" if dtype == "F16" else "<f4").astype(np.float32)


def read_bytes(file: Path, offset: int, size: int) -> bytes:
    """Part of a file; every byte this package reads of weights passes here."""
    with file.open("rb") as stream:
        stream.seek(offset)
        data = stream.read(size)
    if len(data) != size:
        raise CheckpointError(
            f"{file} is truncated: wanted {size} bytes at {offset}, got {len(data)}; "
            "download it again"
        )
    return data


def require_finite(values: FloatArray, what: str) -> None:
    """Refuse NaN and infinity.

    Args:
        values: float32, any shape, not empty.
        what: the tensor and where it is, to begin the error with.

    Raises:
        CheckpointError: some value is not finite.
    """
    # NaN and infinity both survive min or max, which need no array of flags.
    with np.errstate(invalid="ignore"):
        finite = bool(np.isfinite(values.min()) and np.isfinite(values.max()))
    if not finite:
        bad = int(np.count_nonzero(~np.isfinite(values)))
        raise CheckpointError(
            f"{what} holds NaN or infinity in {bad} of {values.size} values; "
            "use a checkpoint whose weights are finite"
        )


def identify_files(files: Iterable[Path]) -> str:
    """Names, sizes and times of change of files, where symbolic links lead.

    The time of change is told twice: what a copy or an archive sets back is the first alone.
    """
    lines = []
    for file in sorted(file.resolve() for file in files):
        status = file.stat()
        lines.append(f"{file} {status.st_size} {status.st_mtime_ns} {status.st_ctime_ns}")
    return "\n".join(lines)
