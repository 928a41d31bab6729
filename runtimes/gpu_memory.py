"""Buffers on a GPU, as ONNX Runtime hands them out.

Enters: shapes and numpy arrays. Leaves: OrtValues that a session reads and writes in place.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol

import numpy as np
import onnxruntime as ort
from numpy.typing import NDArray

Array = NDArray[Any]


class Memory(Protocol):
    """Where a session's states lie."""

    def upload(self, array: Array) -> ort.OrtValue:
        """A copy on the device."""

    def zeros(self, shape: Sequence[int], dtype: str) -> ort.OrtValue:
        """Zeros on the device; dtype is numpy's name."""

    def read(self, value: ort.OrtValue) -> Array:
        """A copy in the host's memory."""


class DeviceMemory:
    """Buffers that ONNX Runtime allocates by a device's name.

    Args:
        device: as `OrtValue.ortvalue_from_numpy` calls it: "dml", "webgpu" or "cpu".
        index: which of them.
    """

    def __init__(self, device: str, index: int = 0) -> None:
        self._device, self._index = device, index

    def upload(self, array: Array) -> ort.OrtValue:
        """A copy on the device."""
        # On the CPU an OrtValue would share the array, which is the caller's.
        own = array.copy() if self._device == "cpu" else np.ascontiguousarray(array)
        return ort.OrtValue.ortvalue_from_numpy(own, self._device, self._index)

    def zeros(self, shape: Sequence[int], dtype: str) -> ort.OrtValue:
        """Zeros on the device; fresh buffers hold whatever lay there."""
        return self.upload(np.zeros(shape, np.dtype(dtype)))

    def read(self, value: ort.OrtValue) -> Array:
        """A copy in the host's memory."""
        return np.array(value.numpy())
