"""What subjects are held against, once it is computed: logits on disk, states, judgements.

    logits.f32           float32 [windows, positions, V], as the model gave them
    states.safetensors   states after short and long rows
    record.json          shape, checksums, what it is of

Logits are kept as they are, and not in 16 bits: rounding log p to 1/4096 nats, as base files do,
brings an error of 3e-5 nats a position, which would hide how exact fp32 and fp16 are.
"""

from __future__ import annotations

import json
import zlib
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Protocol

import numpy as np
from safetensors import SafetensorError
from safetensors.numpy import load_file, save_file

from lfm2_deploy.compare.base_file import FLOOR, BaseFile
from lfm2_deploy.compare.protocol import Windows
from lfm2_deploy.compare.scorer import Request, Scored, States, check_finite
from lfm2_deploy.contracts import FloatArray, Progress
from lfm2_deploy.errors import GenerationError

# Tokens of the shorter rows whose states are compared.
SHORT_ROW = 16
# Rows of each length whose states are compared. In a rounded mixture of experts one row says
# little (`states.compare_states`): with a tenth of the rows astray, 4 of 7 are in 3 of 1,000.
STATE_ROWS = 7
# Long rows cost as much as windows; below so many windows, others are put together of them.
_LEAST_LONG_ROWS = 3
_LOGITS, _STATES, _RECORD = "logits.f32", "states.safetensors", "record.json"


class Reference(Protocol):
    """Logits of every scored position, and states."""

    @property
    def vocab_size(self) -> int:
        """V."""

    @property
    def floor(self) -> float | None:
        """See `metrics.score_positions`."""

    @property
    def resolution(self) -> float:
        """See `result.ReferenceInfo`."""

    @property
    def states(self) -> Mapping[int, States]:
        """Number of a request -> its states; empty where there are none."""

    def read(self, window: int) -> FloatArray:
        """Logits (with a floor: log-probabilities) float32 [positions, V] of a window."""


def list_requests(windows: Windows) -> list[Request]:
    """What is read of every model: each window, and then rows for their states alone."""
    count, size = len(windows.chunks), min(SHORT_ROW, windows.first)
    rows = [
        Request(windows.read_by(number), windows.first, states=number < STATE_ROWS)
        for number in range(count)
    ]
    more = [_cut_row(windows, number, windows.length - 1) for number in range(_LEAST_LONG_ROWS)]
    short = [_cut_row(windows, number, size) for number in range(STATE_ROWS)]
    return [*rows, *(Request(row, len(row) - 1, states=True) for row in [*more[count:], *short])]


def _cut_row(windows: Windows, number: int, size: int) -> list[int]:
    """The beginning of a window; where all have had their turn, from another place of one."""
    turn, window = divmod(number, len(windows.chunks))
    first, *body = windows.read_by(window)
    at = turn * SHORT_ROW % len(body)
    return [first, *body[at:], *body[:at]][:size]


def pair_states(number: int, scored: Scored) -> Mapping[int, States]:
    """States by the number of their request; empty where there are none."""
    return {} if scored.states is None else {number: scored.states}


@dataclass(frozen=True, slots=True)
class _Record:
    """What record.json says."""

    windows: int
    positions: int
    vocab_size: int
    checksums: tuple[int, ...]
    states_checksum: int
    about: str


class StoredReference:
    """A reference in a folder; see the module. Logits stay on disk, in a file held open.

    Where the system allows it, that file can be read to its end though another process removes
    the folder meanwhile.

    Args:
        folder: where it lies.
        record: what record.json says.
        states: see `Reference`.

    Raises:
        OSError: it cannot be opened.
    """

    floor: float | None = None
    resolution = 0.0

    def __init__(self, folder: Path, record: _Record, states: Mapping[int, States]) -> None:
        self.folder, self._record, self.states = folder, record, states
        self.vocab_size = record.vocab_size
        self._file = (folder / _LOGITS).open("rb")

    def close(self) -> None:
        """Close the file: Windows removes none that is open."""
        self._file.close()

    def read(self, window: int) -> FloatArray:
        """Logits float32 [positions, V] of a window."""
        shape = (self._record.positions, self.vocab_size)
        count = shape[0] * shape[1]
        self._file.seek(4 * count * window)
        return np.fromfile(self._file, np.float32, count).reshape(shape)

    def is_whole(self, progress: Progress) -> bool:
        """Whether every byte is as it was written."""
        count = self._record.windows
        for number, checksum in enumerate(self._record.checksums):
            progress("checking the reference", number, count)
            if zlib.crc32(self.read(number).data) != checksum:
                return False
        progress("checking the reference", count, count)
        return True


class BaseReference:
    """A base file of llama.cpp as a reference: no model is behind it, so it has no states.

    Args:
        base: the file.
        resolution: see `BaseFile.measure_resolution`.
    """

    floor: float | None = FLOOR
    states: Mapping[int, States] = {}

    def __init__(self, base: BaseFile) -> None:
        self._base, self.vocab_size = base, base.vocab_size
        self.resolution = base.measure_resolution()

    def read(self, window: int) -> FloatArray:
        """Log-probabilities float32 [positions, V] of a window."""
        return self._base.read(window)


def measure_reference(windows: Windows, vocab_size: int) -> int:
    """Bytes that a stored reference takes, but for its states."""
    return 4 * len(windows.chunks) * windows.positions * vocab_size


def write_reference(
    folder: Path, windows: Windows, answers: Iterator[Scored], vocab_size: int, about: str
) -> None:
    """Write a reference into an empty folder.

    Args:
        folder: where.
        windows: what was read.
        answers: to `list_requests`, in order.
        vocab_size: V.
        about: what it is of, for people.

    Raises:
        GenerationError: logits are not finite: nothing can be held against them.
    """
    checksums = []
    states: dict[int, States] = {}
    with (folder / _LOGITS).open("wb") as file:
        for number, scored in enumerate(answers):
            states.update(pair_states(number, scored))
            if number < len(windows.chunks):
                logits = np.ascontiguousarray(scored.logits, np.float32)
                _check_reference(logits, windows.first, number)
                checksums.append(zlib.crc32(logits.data))
                file.write(logits.data)  # tofile would not say why it fails
    named = {f"{n}/{name}": array for n, row in states.items() for name, array in row.items()}
    save_file(
        {name: np.ascontiguousarray(array) for name, array in named.items()}, folder / _STATES
    )
    record = _Record(
        windows=len(windows.chunks),
        positions=windows.positions,
        vocab_size=vocab_size,
        checksums=tuple(checksums),
        states_checksum=zlib.crc32((folder / _STATES).read_bytes()),
        about=about,
    )
    (folder / _RECORD).write_text(json.dumps(asdict(record), indent=1) + "\n", encoding="utf-8")


def _check_reference(logits: FloatArray, first: int, row: int) -> None:
    try:
        check_finite(logits, first, row)
    except GenerationError as error:
        raise GenerationError(f"the reference {error}") from error


def open_reference_folder(folder: Path, progress: Progress) -> StoredReference | None:
    """A reference that was written; None where there is none that is whole."""
    try:
        raw = json.loads((folder / _RECORD).read_text(encoding="utf-8"))
        record = _Record(**{**raw, "checksums": tuple(raw["checksums"])})
        size = 4 * record.windows * record.positions * record.vocab_size
        stored = (folder / _STATES).read_bytes()
        whole = (folder / _LOGITS).stat().st_size == size
        if not whole or zlib.crc32(stored) != record.states_checksum:
            return None
        reference = StoredReference(folder, record, _load_states(folder / _STATES))
    except (OSError, ValueError, KeyError, TypeError, SafetensorError):
        return None
    whole = False
    try:
        whole = reference.is_whole(progress)
    finally:
        if not whole:
            reference.close()
    return reference if whole else None


def _load_states(file: Path) -> dict[int, dict[str, FloatArray]]:
    states: dict[int, dict[str, FloatArray]] = {}
    for key, array in load_file(file).items():
        number, _, name = key.partition("/")
        states.setdefault(int(number), {})[name] = array
    return states
