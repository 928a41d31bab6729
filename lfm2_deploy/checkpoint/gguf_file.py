"""One *.gguf file: its metadata, and where its tensors lie.

Enters: a path. Leaves: a `GgufFile`; no tensor is read. Knows nothing of models. The header is
read here rather than with gguf's own `GGUFReader` (0.19), which makes a numpy array of every token
and number, and goes on forever where an array claims to be longer than the file.

Source: the format, https://github.com/ggml-org/ggml/blob/master/docs/gguf.md; names and block
sizes of types come from the `gguf` package.
"""

from __future__ import annotations

import re
import struct
from collections.abc import Mapping
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from lfm2_deploy.errors import CheckpointError, RuntimeUnavailableError, SourceError

_MAGIC = b"GGUF"
_VERSIONS = (2, 3)
_ALIGNMENT = 32
_STRING, _ARRAY = 8, 9
# Value types by number, as `struct` and numpy call them.
_SCALARS = {
    0: "<u1", 1: "<i1", 2: "<u2", 3: "<i2", 4: "<u4", 5: "<i4", 6: "<f4", 7: "?",
    10: "<u8", 11: "<i8", 12: "<f8",
}  # fmt: skip
# A header of a vocabulary of 128,000 tokens takes 6 MB; a file that claims more than this must
# not ask for all memory.
_LARGEST_HEADER_BYTES = 256 << 20
_MOST_ELEMENTS = 1 << 24
_MOST_DIMENSIONS = 4
_PART = re.compile(r"-(\d{5})-of-(\d{5})\.gguf", re.IGNORECASE)
# What reading a header raises where it says anything else than it should.
_CORRUPT = (ValueError, OverflowError, struct.error, UnicodeDecodeError)


@dataclass(frozen=True, slots=True)
class GgufTensor:
    """A tensor as a file's header describes it.

    Args:
        name: its name in the file.
        type_name: the format's name of its numbers, such as "Q4_0".
        shape: dimensions, outermost first.
        offset: bytes from the start of the file to its first number.
        block: numbers that share a block, along the last dimension; 1 for floats.
        block_bytes: of one block.
    """

    name: str
    type_name: str
    shape: tuple[int, ...]
    offset: int
    block: int
    block_bytes: int

    @property
    def row_bytes(self) -> int:
        """Bytes of one row, which holds whole blocks."""
        return self.shape[-1] // self.block * self.block_bytes

    @property
    def size_bytes(self) -> int:
        """Bytes of all rows."""
        return prod(self.shape[:-1]) * self.row_bytes


@dataclass(frozen=True, slots=True)
class GgufFile:
    """What a file's header says.

    Args:
        path: the file.
        metadata: key -> number, text, list of texts, or numpy array of numbers.
        tensors: by name in the file.
    """

    path: Path
    metadata: Mapping[str, Any]
    tensors: Mapping[str, GgufTensor]


def read_gguf(path: Path) -> GgufFile:
    """A file's header.

    Args:
        path: an existing file.

    Raises:
        SourceError: it is not a GGUF file, or one of several parts.
        CheckpointError: the header is corrupt, or promises more bytes than the file has.
        RuntimeUnavailableError: the `gguf` package is not installed.
    """
    _refuse_part(path)
    size = path.stat().st_size
    with path.open("rb") as stream:
        reader = _Reader(stream, min(size, _LARGEST_HEADER_BYTES))
        try:
            _check_version(path, reader)
            tensor_count, field_count = reader.number("<u8"), reader.number("<u8")
            metadata = _read_fields(reader, field_count)
            _refuse_parts(path, metadata)
            infos = [_read_info(reader) for _ in range(reader.count(tensor_count, 24))]
            start = _align(reader.offset, metadata.get("general.alignment", _ALIGNMENT))
            tensors = {info[0]: _place(info, start, size, path) for info in infos}
            if len(tensors) < len(infos):
                raise ValueError("two tensors have one name")
        except _CORRUPT as error:
            raise CheckpointError(
                f"{path} has a corrupt or truncated header ({error}); download it again"
            ) from error
    return GgufFile(path, metadata, tensors)


def _refuse_part(path: Path) -> None:
    found = _PART.search(path.name)
    if found is not None and int(found[2]) > 1:
        raise SourceError(
            f"{path} is part {int(found[1])} of {int(found[2])}; join them into one file: "
            "llama-gguf-split --merge FIRST.gguf WHOLE.gguf"
        )


def _refuse_parts(path: Path, metadata: Mapping[str, Any]) -> None:
    count = metadata.get("split.count", 0)
    if isinstance(count, int) and count > 1:
        raise SourceError(
            f"{path} is one of {count} parts; join them into one file: "
            "llama-gguf-split --merge FIRST.gguf WHOLE.gguf"
        )


def _check_version(path: Path, reader: _Reader) -> None:
    if reader.take(4) != _MAGIC:
        raise SourceError(f"{path} is not a GGUF file: it does not begin with 'GGUF'")
    version = reader.number("<u4")
    if version not in _VERSIONS:
        swapped = " (of big-endian machines)" if version & 0xFFFF == 0 else ""
        raise SourceError(
            f"{path} is GGUF version {version}{swapped}, expected one of "
            f"{', '.join(map(str, _VERSIONS))}; convert it with a current llama.cpp"
        )


class _Reader:
    """Takes values off a stream, never more bytes than there are."""

    def __init__(self, stream: BinaryIO, most: int) -> None:
        self._stream, self._most, self.offset = stream, most, 0

    def take(self, size: int) -> bytes:
        if size > self._most - self.offset:
            raise ValueError(f"{size:,} bytes wanted at byte {self.offset:,}, beyond its end")
        data = self._stream.read(size)
        if len(data) != size:
            raise ValueError(f"it ends at byte {self.offset + len(data):,}")
        self.offset += size
        return data

    def count(self, claimed: int, least_bytes: int) -> int:
        """A number of things, each of at least so many bytes, that there can be."""
        if claimed > _MOST_ELEMENTS or claimed * least_bytes > self._most - self.offset:
            raise ValueError(f"{claimed:,} entries are claimed at byte {self.offset:,}")
        return claimed

    def number(self, kind: str) -> Any:
        dtype = np.dtype(kind)
        return np.frombuffer(self.take(dtype.itemsize), dtype)[0].item()

    def text(self) -> str:
        return self.take(self.number("<u8")).decode("utf-8")

    def value(self, kind: int) -> Any:
        if kind == _STRING:
            return self.text()
        if kind != _ARRAY:
            return self.number(_find_scalar(kind))
        element, claimed = self.number("<u4"), self.number("<u8")
        if element == _STRING:
            return [self.text() for _ in range(self.count(claimed, 8))]
        dtype = np.dtype(_find_scalar(element))
        count = self.count(claimed, dtype.itemsize)
        return np.frombuffer(self.take(count * dtype.itemsize), dtype)


def _find_scalar(kind: int) -> str:
    if kind not in _SCALARS:
        raise ValueError(f"a value is of type {kind}, which is none")
    return _SCALARS[kind]


def _read_fields(reader: _Reader, claimed: int) -> dict[str, Any]:
    fields: dict[str, Any] = {}
    for _ in range(reader.count(claimed, 13)):
        key = reader.text()
        fields[key] = reader.value(reader.number("<u4"))
    return fields


_Info = tuple[str, tuple[int, ...], int, int]


def _read_info(reader: _Reader) -> _Info:
    """Name, shape, number of the type, and offset from where tensors begin."""
    name, dimensions = reader.text(), reader.number("<u4")
    if not 1 <= dimensions <= _MOST_DIMENSIONS:
        raise ValueError(f"{name!r} has {dimensions} dimensions")
    # The format lists the innermost first.
    shape = tuple(reader.number("<u8") for _ in range(dimensions))[::-1]
    return name, shape, reader.number("<u4"), reader.number("<u8")


def _align(offset: int, alignment: Any) -> int:
    if not isinstance(alignment, int) or alignment < 1 or alignment & (alignment - 1):
        raise ValueError(f"general.alignment is {alignment!r}, expected a power of two")
    return -(-offset // alignment) * alignment


def _place(info: _Info, start: int, size: int, path: Path) -> GgufTensor:
    name, shape, number, offset = info
    type_name, block, block_bytes = _describe_type(number)
    tensor = GgufTensor(name, type_name, shape, start + offset, block, block_bytes)
    if min(shape) < 1 or shape[-1] % block:
        raise ValueError(f"{name!r} is {list(shape)} in {type_name}, which has blocks of {block}")
    end = tensor.offset + tensor.size_bytes
    if end > size:
        raise CheckpointError(
            f"{path} is truncated: {name} should end at byte {end:,}, the file has {size:,}; "
            "download it again"
        )
    return tensor


def _describe_type(number: int) -> tuple[str, int, int]:
    """Name, numbers of a block, and its bytes."""
    constants = import_gguf().constants
    try:
        kind = constants.GGMLQuantizationType(number)
    except ValueError as error:
        raise ValueError(
            f"a tensor is of type {number}, which the installed gguf package does not know"
        ) from error
    block, block_bytes = constants.GGML_QUANT_SIZES[kind]
    return str(kind.name), int(block), int(block_bytes)


def import_gguf() -> Any:
    """The `gguf` package, with its `constants` and `quants`.

    Raises:
        RuntimeUnavailableError: it is not installed.
    """
    try:
        import gguf
        import gguf.constants
        import gguf.quants
    except ImportError as error:
        raise RuntimeUnavailableError(
            "reading GGUF files needs the gguf package: pip install 'lfm2-deploy[gguf]' "
            "(in a clone: '.[gguf]')"
        ) from error
    return gguf
