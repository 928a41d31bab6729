"""The smallest graph worth running on a device: y = max(x w, 0), as ONNX bytes.

There are two, in float32 and in float16: not every GPU computes in float16 (WebGPU's
shader-f16), and most bundles for GPUs do.

Runtimes may not import onnx, so the bytes are written out; `tests/runtimes/test_device_check.py`
builds the same with onnx and compares. MatMul and Relu of opset 17 are registered by every
provider, in float32 too.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

# Input x float32 [2, 4], initializer w float32 [4, 2], output y float32 [2, 2].
GRAPH = bytes.fromhex(
    "08083a8f010a1b0a01780a01771201701a086d756c7469706c7922064d61744d756c0a120a01701201791a04"
    "636c6970220452656c75120570726f62652a2b0804080210014201774a200000803f000080bf000000400000"
    "00c000004040000040c000008040000080c05a130a0178120e0a0c080112080a0208020a02080462130a0179"
    "120e0a0c080112080a0208020a02080242040a001011"
)
# The same in float16.
HALF_GRAPH = bytes.fromhex(
    "08083a7f0a1b0a01780a01771201701a086d756c7469706c7922064d61744d756c0a120a01701201791a0463"
    "6c6970220452656c75120570726f62652a1b08040802100a4201774a10003c00bc004000c0004200c2004400"
    "c45a130a0178120e0a0c080a12080a0208020a02080462130a0179120e0a0c080a12080a0208020a02080242"
    "040a001011"
)
OPERATORS = ("MatMul", "Relu")
INPUT, OUTPUT = "x", "y"


def make_input() -> NDArray[np.float32]:
    """x: 0 to 7 in rows of 4."""
    return np.arange(8, dtype=np.float32).reshape(2, 4)


# Half floats near 60 are 0.03 apart, and Qualcomm's HTP gives 60.000004 (emulator of
# onnxruntime-qnn 2.7.0); a driver that computes wrongly is further off.
_TOLERANCE = 0.1
_EXPECTED = ((20.0, 0.0), (60.0, 0.0))


def make_half_input() -> NDArray[np.float16]:
    """x of `HALF_GRAPH`: the same numbers."""
    return make_input().astype(np.float16)


def find_fault(result: NDArray[np.float32] | NDArray[np.float16]) -> str | None:
    """What is wrong with a device's y; None if nothing is."""
    found = np.asarray(result, dtype=np.float32)
    expected = np.array(_EXPECTED, dtype=np.float32)
    if found.shape == expected.shape and np.abs(found - expected).max() <= _TOLERANCE:
        return None
    return f"it computes {found.tolist()}, expected {expected.tolist()}"
