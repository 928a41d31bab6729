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


# y = Expand(x, shape), opset 17. Runtimes may not import onnx, so the bytes are written out;
# tests/runtimes/test_gpu_memory.py builds the same with onnx and compares.
_EXPAND = (
    "08083a4e0a150a01780a0573686170651201792206457870616e641206657870616e645a090a017812040a0208{0}"
    "5a170a057368617065120e0a0c080712080a06120472616e6b62090a017912040a0208{0}42040a001011"
)
EXPAND_GRAPHS = {
    "float32": bytes.fromhex(_EXPAND.format("01")),
    "float16": bytes.fromhex(_EXPAND.format("0a")),
}


class Memory(Protocol):
    """Where a session's states lie."""

    def upload(self, array: Array) -> ort.OrtValue:
        """A copy on the device."""

    def zeros(self, shape: Sequence[int], dtype: str) -> ort.OrtValue:
        """Zeros on the device; dtype is numpy's name."""

    def read(self, value: ort.OrtValue) -> Array:
        """A copy in the host's memory."""

    def write(self, value: ort.OrtValue, array: Array) -> None:
        """Put an array of the same shape and type where a value lies.

        Raises:
            NotImplementedError: this memory cannot be written in place.
        """


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

    def write(self, value: ort.OrtValue, array: Array) -> None:
        """Put an array where a value lies."""
        value.update_inplace(array)


class SessionMemory:
    """Buffers that only a session can allocate, as outputs of a small graph.

    onnxruntime-webgpu 1.27.0 does not make OrtValues on its device from Python ("Can't allocate
    memory on the device using this package"). It goes when that wheel is no longer supported.

    Args:
        provider: ONNX Runtime's name.
        device: as IOBinding calls it.
    """

    def __init__(self, provider: str, device: str) -> None:
        self._provider, self._device = provider, device
        # Kept: what a session allocated is void without it.
        self._sessions: dict[str, ort.InferenceSession] = {}

    def upload(self, array: Array) -> ort.OrtValue:
        """A copy on the device."""
        return self._expand(np.ascontiguousarray(array), array.shape)

    def zeros(self, shape: Sequence[int], dtype: str) -> ort.OrtValue:
        """Zeros on the device."""
        return self._expand(np.zeros(1, np.dtype(dtype)), shape)

    def read(self, value: ort.OrtValue) -> Array:
        """A copy in the host's memory."""
        return np.array(value.numpy())

    def write(self, value: ort.OrtValue, array: Array) -> None:
        """Not possible; nothing that needs it is asked of such a device."""
        raise NotImplementedError("this memory cannot be written in place")

    def _expand(self, array: Array, shape: Sequence[int]) -> ort.OrtValue:
        binding = self._find_session(array.dtype.name).io_binding()
        binding.bind_cpu_input("x", array)
        binding.bind_cpu_input("shape", np.array(shape, np.int64))
        binding.bind_output("y", self._device)
        session = self._sessions[array.dtype.name]
        session.run_with_iobinding(binding)
        value: ort.OrtValue = binding.get_outputs()[0]
        return value

    def _find_session(self, dtype: str) -> ort.InferenceSession:
        if dtype not in self._sessions:
            options = ort.SessionOptions()
            options.log_severity_level = 3
            self._sessions[dtype] = ort.InferenceSession(
                EXPAND_GRAPHS[dtype], options, providers=[self._provider], enable_fallback=False
            )
        return self._sessions[dtype]
