"""Prefixes of prompts on disk: states and logits after them, one file each.

Enters: token ids and a snapshot. Leaves: the longest stored beginning of a prompt, in
this process or another. Files are written aside and renamed, so several processes may
share a folder; one that is damaged or foreign is never used. No pickle.
"""

from __future__ import annotations

import hashlib
import os
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file

from lfm2_deploy.bundle import Bundle
from lfm2_deploy.contracts import FloatArray, NamedStates
from lfm2_deploy.errors import BundleError
from lfm2_deploy.states import StateSpec

Arrays = dict[str, NDArray[Any]]

_SUFFIX = ".lfm2prefix"
_IDS, _LOGITS = "prompt.ids", "prompt.logits"
DEFAULT_MAX_BYTES = 4 * 10**9


@dataclass(frozen=True, slots=True)
class StoredPrefix:
    """What was stored of a prompt: states of one row and logits [V] after `length` tokens."""

    length: int
    states: NamedStates
    logits: FloatArray


class PrefixStore:
    """A folder of stored prefixes of one or several bundles.

    Args:
        folder: made where it does not exist.
        bundle: whose states these are; those of other bundles in the folder are left alone.
        max_bytes: of all files together; the ones used longest ago make room.
        min_tokens: shorter prompts are not worth a file.

    Raises:
        BundleError: the folder cannot be made.
    """

    def __init__(
        self,
        folder: Path,
        bundle: Bundle,
        *,
        max_bytes: int = DEFAULT_MAX_BYTES,
        min_tokens: int = 64,
    ) -> None:
        self.folder, self.max_bytes, self.min_tokens = folder, max_bytes, min_tokens
        self._bundle = bundle.identity
        self._states = bundle.manifest.states
        self._vocab_size = bundle.config.vocab_size
        try:
            folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise BundleError(
                f"no prompt cache can be made in {folder} ({error.strerror or error}); "
                "choose another folder"
            ) from error

    def find(self, ids: Sequence[int], longer_than: int = 0) -> StoredPrefix | None:
        """The longest stored beginning of a prompt that is longer than what is known.

        A file that is damaged is removed.
        """
        wanted = np.asarray(ids, np.int64)
        lengths = {self._read_length(file) for file in self._list_own()}
        for length in sorted(lengths, reverse=True):
            if longer_than < length <= len(ids):
                found = self._read(wanted[:length])
                if found is not None:
                    return found
        return None

    def save(self, ids: Sequence[int], states: NamedStates, logits: FloatArray) -> None:
        """Store a prompt; where that fails, as on a full disk, nothing is stored."""
        given: Arrays = {**states.arrays, _LOGITS: logits, _IDS: np.asarray(ids, np.int64)}
        arrays = {name: np.ascontiguousarray(array) for name, array in given.items()}
        size = sum(array.nbytes for array in arrays.values())
        if size > self.max_bytes:
            return
        self._make_room(size)
        try:
            handle, scratch = tempfile.mkstemp(dir=self.folder, suffix=".tmp")
            os.close(handle)
            try:
                save_file(arrays, scratch, {"sha256": _hash(arrays)})
                os.replace(scratch, self._name(arrays[_IDS]))
            finally:
                Path(scratch).unlink(missing_ok=True)
        except (OSError, SafetensorError):
            return

    def _name(self, ids: NDArray[np.int64]) -> Path:
        # The length stands in the name, so that a look opens only files that may fit.
        digest = hashlib.sha256(ids.astype("<i8").tobytes()).hexdigest()
        return self.folder / f"{self._bundle[:16]}-{len(ids)}-{digest[:32]}{_SUFFIX}"

    def _list_own(self) -> Iterator[Path]:
        return self.folder.glob(f"{self._bundle[:16]}-*{_SUFFIX}")

    @staticmethod
    def _read_length(file: Path) -> int:
        length = file.name.split("-")[1]
        return int(length) if length.isdecimal() else 0

    def _read(self, ids: NDArray[np.int64]) -> StoredPrefix | None:
        file = self._name(ids)
        if not file.is_file():
            return None
        try:
            with safe_open(file, "numpy") as opened:
                arrays = {name: opened.get_tensor(name) for name in opened.keys()}  # noqa: SIM118
                digest = (opened.metadata() or {}).get("sha256")
            os.utime(file)
        except (OSError, SafetensorError, ValueError, TypeError):
            file.unlink(missing_ok=True)
            return None
        if digest != _hash(arrays) or not self._fits(arrays, ids):
            file.unlink(missing_ok=True)
            return None
        logits = arrays.pop(_LOGITS)
        del arrays[_IDS]
        return StoredPrefix(len(ids), NamedStates((len(ids),), arrays), logits)

    def _fits(self, arrays: Arrays, ids: NDArray[np.int64]) -> bool:
        def shape(spec: StateSpec) -> tuple[int, ...]:
            return spec.concrete_shape(1, len(ids))

        expected = {spec.input: (shape(spec), np.dtype(spec.dtype)) for spec in self._states}
        expected[_LOGITS] = ((self._vocab_size,), np.dtype(np.float32))
        expected[_IDS] = (ids.shape, ids.dtype)
        found = {name: (array.shape, array.dtype) for name, array in arrays.items()}
        return found == expected and np.array_equal(arrays[_IDS], ids)

    def _make_room(self, size: int) -> None:
        """Remove what was used longest ago until so many bytes fit."""
        files = []
        for file in self.folder.glob(f"*{_SUFFIX}"):
            try:
                status = file.stat()
            except OSError:  # another process removed it
                continue
            files.append((status.st_mtime_ns, status.st_size, file))
        total = sum(held for _, held, _ in files)
        for _, held, file in sorted(files):
            if total + size <= self.max_bytes:
                return
            file.unlink(missing_ok=True)
            total -= held


def _hash(arrays: Arrays) -> str:
    digest = hashlib.sha256()
    for name in sorted(arrays):
        digest.update(name.encode())
        digest.update(np.ascontiguousarray(arrays[name]).data)
    return digest.hexdigest()
