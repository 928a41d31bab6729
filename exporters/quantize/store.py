"""Rounded layers on the disk, one file each, until the bundle is whole.

    layer.N.bin    levels (4 bits packed), steps in float16, and floats that were changed
    layer.N.json   where each lies, and what was measured; written last: then the layer is whole
    hidden.N.bin   both models' hidden states after the layer, to go on from

What is here was written by this program on this machine, and is believed where its
fingerprint is that of the export under way.
"""

from __future__ import annotations

import json
import os
from collections.abc import KeysView, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from numpy.typing import NDArray

from exporters.quantize.pack import dequantize, pack, unpack
from lfm2_deploy.contracts import FloatArray
from lfm2_deploy.errors import ResumeError

_FINGERPRINT = "fingerprint.txt"


@dataclass(frozen=True, slots=True)
class Place:
    """Where a tensor lies in a layer's file; of floats `bits` is 32."""

    offset: int
    shape: tuple[int, ...]
    bits: int
    group: int


class Store:
    """A folder of rounded layers.

    Args:
        folder: made when something is written.
        fingerprint: of all that determines what is in it.

    Raises:
        ResumeError: what is there is of another export.
    """

    def __init__(self, folder: Path, fingerprint: str) -> None:
        self.folder = folder
        folder.mkdir(exist_ok=True)
        file = folder / _FINGERPRINT
        if not self._index(0).is_file():
            file.write_text(fingerprint, encoding="ascii")
        elif file.read_text(encoding="ascii", errors="replace") != fingerprint:
            raise explain_other(folder)
        self._places: dict[str, tuple[int, Place]] = {}
        self.records: list[Any] = []
        while self._index(len(self.records)).is_file():
            self._take_in(len(self.records))

    @property
    def layers(self) -> int:
        """How many are whole."""
        return len(self.records)

    def write_layer(self, number: int) -> LayerWriter:
        """What writes the next layer."""
        assert number == self.layers
        return LayerWriter(self, number)

    def finish_layer(self, number: int, places: Mapping[str, Place], record: Any) -> None:
        """Say that a layer's file is whole."""
        plain = {name: [p.offset, list(p.shape), p.bits, p.group] for name, p in places.items()}
        index = self._index(number)
        draft = index.with_suffix(".new")
        with draft.open("w", encoding="ascii") as file:
            json.dump({"places": plain, "record": record}, file)
            file.flush()
            os.fsync(file.fileno())
        os.replace(draft, index)
        self._take_in(number)

    def __contains__(self, name: str) -> bool:
        return name in self._places

    def read(self, name: str) -> FloatArray:
        """A tensor as it was rounded or changed, float32."""
        layer, place = self._places[name]
        with self.data(layer).open("rb") as file:
            file.seek(place.offset)
            if place.bits == 32:
                return _take(file, np.float32, place.shape)
            rows, columns = place.shape
            packed = _take(file, np.uint8, (rows, columns * place.bits // 8))
            steps = _take(file, np.float16, (rows, columns // place.group))
        return dequantize(unpack(packed, place.bits), steps.astype(np.float32), place.bits)

    def save_hidden(self, number: int, *states: FloatArray) -> None:
        """Keep hidden states after layer `number`, and no others."""
        with self._hidden(number).open("wb") as file:
            for state in states:
                file.write(np.ascontiguousarray(state).data)
            file.flush()
            os.fsync(file.fileno())

    def drop_hidden(self, number: int) -> None:
        """Forget those of an earlier layer."""
        self._hidden(number).unlink(missing_ok=True)

    def load_hidden(self, number: int, count: int, shape: tuple[int, ...]) -> list[FloatArray]:
        """`count` arrays as they were kept after layer `number`."""
        with self._hidden(number).open("rb") as file:
            return [_take(file, np.float32, shape) for _ in range(count)]

    def data(self, number: int) -> Path:
        """A layer's file."""
        return self.folder / f"layer.{number}.bin"

    def _index(self, number: int) -> Path:
        return self.folder / f"layer.{number}.json"

    def _hidden(self, number: int) -> Path:
        return self.folder / f"hidden.{number}.bin"

    def _take_in(self, number: int) -> None:
        raw = json.loads(self._index(number).read_text(encoding="ascii"))
        for name, (offset, shape, bits, group) in raw["places"].items():
            self._places[name] = number, Place(offset, tuple(shape), bits, group)
        self.records.append(raw["record"])


def refuse_layers(folder: Path) -> None:
    """Called where nothing is rounded beforehand, and the folder would go with the bundle's end.

    Raises:
        ResumeError: it holds layers of another export.
    """
    if any(folder.glob("layer.*.json")):
        raise explain_other(folder)


def explain_other(folder: Path) -> ResumeError:
    """Layers that were rounded for another export are kept."""
    return ResumeError(
        f"what an interrupted export left in {folder} was rounded otherwise: export as then, or "
        "with --overwrite instead of --resume to start afresh"
    )


class LayerWriter:
    """Writes one layer's tensors as they are found."""

    def __init__(self, store: Store, number: int) -> None:
        self._store, self._number = store, number
        self._file: BinaryIO = store.data(number).open("wb")
        self._places: dict[str, Place] = {}

    @property
    def names(self) -> KeysView[str]:
        """What was written."""
        return self._places.keys()

    def put_levels(self, name: str, levels: FloatArray, steps: FloatArray, bits: int) -> None:
        """Signed levels [N, K], integers, and steps [N, G] that float16 holds."""
        group = levels.shape[1] // steps.shape[1]
        self._places[name] = Place(self._file.tell(), levels.shape, bits, group)
        raised = (levels + (1 << (bits - 1))).astype(np.uint8)
        self._file.write(np.ascontiguousarray(pack(raised, bits)).data)
        self._file.write(np.ascontiguousarray(steps.astype(np.float16)).data)

    def put_floats(self, name: str, array: FloatArray) -> None:
        """A float32 tensor."""
        self._places[name] = Place(self._file.tell(), array.shape, 32, 0)
        self._file.write(np.ascontiguousarray(array).data)

    def finish(self, record: Any) -> None:
        """The layer is whole."""
        self._file.flush()
        os.fsync(self._file.fileno())
        self._file.close()
        self._store.finish_layer(self._number, self._places, record)


def _take(file: BinaryIO, dtype: Any, shape: tuple[int, ...]) -> NDArray[Any]:
    array = np.empty(shape, dtype)
    file.readinto(array.data.cast("B"))  # type: ignore[attr-defined]
    return array
