"""llama.cpp's KL-divergence base files: log-probabilities of a reference, 16 bits each.

    char[8]   "_logits_"
    int32     n_ctx       tokens in a chunk
    int32     n_vocab
    int32     n_chunk
    int32     tokens[n_chunk * n_ctx]     as tokenized: BOS is put in front only when run
    then for each chunk, for positions n_ctx / 2 to n_ctx - 2 (logits after that token):
    float32   scale, float32 lowest
    uint16    q[n_vocab], and one more where n_vocab is odd
              log p = scale * q + lowest; nothing is below the likeliest less 16 nats

All little endian. Source: llama.cpp, tools/perplexity/perplexity.cpp (`perplexity` writes it,
`kl_divergence` reads it), commit 050fc7f. Held against that source; its binary was not run.
"""

from __future__ import annotations

import math
import os
import struct
from collections.abc import Iterable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import BinaryIO

import numpy as np
from numpy.typing import NDArray

from lfm2_deploy.contracts import FloatArray
from lfm2_deploy.errors import GenerationError

_MAGIC = b"_logits_"
_HEADER = struct.Struct("<8s3i")
# What is further below the likeliest is written as if it were there.
_RANGE = np.float32(16)
_STEPS = np.float32(65535)
# llama.cpp leaves tokens out of the divergence whose log-probability is not above this.
FLOOR = -16.0
_POSITIONS_AT_ONCE = 64


def first_scored(length: int) -> int:
    """The first position of a chunk whose logits are scored; the last is `length - 2`."""
    return length // 2


class BaseFile:
    """An opened base file.

    Args:
        path: the file.

    Raises:
        GenerationError: it is no base file, or is cut short.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        with path.open("rb") as file:
            header = file.read(_HEADER.size)
            if len(header) < _HEADER.size or not header.startswith(_MAGIC):
                raise GenerationError(
                    f"{path} is not a base file of llama.cpp: it must begin with "
                    f"{_MAGIC.decode()}; make one with `llama-perplexity --kl-divergence-base`"
                )
            _, self.length, self.vocab_size, self.chunks = _HEADER.unpack(header)
            self._check_size(path.stat().st_size)
            tokens = np.fromfile(file, "<i4", self.chunks * self.length)
        self.tokens: NDArray[np.int32] = tokens.reshape(self.chunks, self.length)
        stray = (self.tokens < 0) | (self.tokens >= self.vocab_size)
        if stray.any():
            raise GenerationError(
                f"{path} is damaged: token {int(self.tokens[stray][0])} is not in 0 to "
                f"{self.vocab_size - 1}; copy it again"
            )

    @property
    def positions(self) -> int:
        """Scored positions of a chunk."""
        return int(self.length - 1 - first_scored(self.length))

    def read(self, chunk: int) -> FloatArray:
        """Log-probabilities float32 [positions, V] of one chunk."""
        raw = self._records()[chunk]
        result = np.empty((self.positions, self.vocab_size), np.float32)
        for at in range(0, self.positions, _POSITIONS_AT_ONCE):
            part = slice(at, at + _POSITIONS_AT_ONCE)
            scale, lowest = _read_scales(raw[part])
            result[part] = raw[part, 4 : 4 + self.vocab_size]
            result[part] *= scale
            result[part] += lowest
        return result

    def measure_resolution(self) -> float:
        """Standard error of a mean KL divergence that rounding to 16 bits alone brings, in nats.

        A rounding error is even over one step, and weighs by its token's probability: at most
        step / sqrt(12) a position, averaged over all.
        """
        scale, _ = _read_scales(self._records()[0])
        step = float(scale.mean())
        return step / math.sqrt(12 * self.positions * self.chunks)

    def _records(self) -> NDArray[np.uint16]:
        """uint16 [chunks, positions, 4 + V padded], mapped from disk."""
        return np.memmap(
            self.path,
            "<u2",
            "r",
            _HEADER.size + 4 * self.tokens.size,
            (self.chunks, self.positions, _record_width(self.vocab_size)),
        )

    def _check_size(self, found: int) -> None:
        if self.length < 4 or self.vocab_size < 2 or self.chunks < 1:
            raise GenerationError(
                f"{self.path} says {self.chunks} chunks of {self.length} tokens and "
                f"{self.vocab_size} words: it is damaged, or holds nothing"
            )
        expected = measure_base_file(self.chunks, self.length, self.vocab_size)
        if found < expected:
            raise GenerationError(
                f"{self.path} has {found:,} bytes, expected {expected:,}: it is cut short; "
                "copy it again"
            )


def measure_base_file(chunks: int, length: int, vocab_size: int) -> int:
    """Bytes of a base file."""
    positions = length - 1 - first_scored(length)
    record = 2 * _record_width(vocab_size)
    return _HEADER.size + chunks * (4 * length + positions * record)


def write_base_file(
    path: Path, tokens: Sequence[Sequence[int]], logits: Iterable[FloatArray], vocab_size: int
) -> None:
    """Write a base file beside its place, and rename it when it is whole.

    Args:
        path: the file to make.
        tokens: chunks of ids, all of one length, as tokenized.
        logits: of each chunk, float32 [positions, V].
        vocab_size: V.

    Raises:
        OSError: it cannot be written, as where the disk is full.
    """
    scratch = path.with_name(f".{path.name}.partial")
    try:
        with scratch.open("wb") as file:
            file.write(_HEADER.pack(_MAGIC, len(tokens[0]), vocab_size, len(tokens)))
            file.write(np.array(tokens, "<i4").tobytes())
            for chunk in logits:
                for at in range(0, len(chunk), _POSITIONS_AT_ONCE):
                    _write_positions(file, chunk[at : at + _POSITIONS_AT_ONCE])
        os.replace(scratch, path)
    except OSError as error:
        raise type(error)(error.errno, error.strerror, str(path)) from error
    finally:
        with suppress(OSError):
            scratch.unlink(missing_ok=True)


def _write_positions(file: BinaryIO, logits: FloatArray) -> None:
    """Records of logits [N, V]; the arithmetic is llama.cpp's, in float32."""
    highest = logits.max(-1, keepdims=True)
    lowest = np.maximum(logits.min(-1, keepdims=True), highest - _RANGE)
    total = np.exp(logits - highest).sum(-1, keepdims=True, dtype=np.float64)
    log_total = np.log(total).astype(np.float32)
    scale = (highest - lowest) / _STEPS
    steps = np.divide(np.float32(1), scale, where=scale > 0, out=np.zeros_like(scale))
    record = np.zeros((len(logits), _record_width(logits.shape[1])), "<u2")
    record[:, :4] = np.hstack([scale, lowest - highest - log_total]).astype("<f4").view("<u2")
    scaled = np.rint(steps * (logits - lowest))
    record[:, 4 : 4 + logits.shape[1]] = np.where(logits > lowest, scaled, 0)
    file.write(record.tobytes())  # tofile would not say why it fails


def _read_scales(records: NDArray[np.uint16]) -> tuple[FloatArray, FloatArray]:
    """Scale and lowest log-probability, float32 [N, 1] each."""
    pair = np.ascontiguousarray(records[:, :4]).view("<f4")
    return pair[:, :1], pair[:, 1:]


def _record_width(vocab_size: int) -> int:
    return 2 * ((vocab_size + 1) // 2) + 4
