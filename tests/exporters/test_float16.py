"""float16 cannot hold every number of a checkpoint."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir
import pytest

from exporters.passes.weights import to_float
from lfm2_deploy.errors import ExportError


def test_number_beyond_float16_is_refused_by_name() -> None:
    weight = np.array([1.0, -1e5], np.float32)
    with pytest.raises(ExportError, match=r"w1 holds 100000, beyond the range of float16"):
        to_float(weight, ir.DataType.FLOAT16, "w1")


def test_largest_float16_is_kept() -> None:
    stored = to_float(np.array([65504.0], np.float32), ir.DataType.FLOAT16, "w1")
    assert stored.dtype == np.float16
    assert stored[0] == 65504
