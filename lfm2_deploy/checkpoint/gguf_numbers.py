"""Rows of a GGUF tensor -> float32, and on which grids its types lie.

Enters: a tensor as a file's header describes it. Leaves: its numbers. Knows nothing of models;
what a type's bytes mean is the `gguf` package's.
"""

from __future__ import annotations

import functools
from collections.abc import Mapping
from math import prod
from pathlib import Path

import numpy as np

from lfm2_deploy.checkpoint.gguf_file import GgufTensor, import_gguf
from lfm2_deploy.checkpoint.tensor_file import read_bytes
from lfm2_deploy.contracts import FloatArray, StoredForm

# Numbers decoded at a time: K-quants take several times the memory of what comes out.
_CHUNK = 1 << 20
# Types whose numbers are a float16 step times an integer, in blocks of 32: how many bits the
# integer takes. Q5_0 has levels of 5 bits, and IQ4_NL 16 integers from -127 to 113.
_GRIDS: Mapping[str, int] = {"Q4_0": 4, "Q5_0": 8, "Q8_0": 8, "IQ4_NL": 8}
_GRID_GROUP = 32
# bfloat16 has a range that float16 lacks.
_FLOATS: Mapping[str, int] = {"F32": 32, "F16": 16, "BF16": 32}


def describe_form(type_name: str) -> StoredForm:
    """What a type's numbers are, for those who can store them as they are."""
    if type_name in _GRIDS:
        return StoredForm(type_name, _GRIDS[type_name], _GRID_GROUP)
    return StoredForm(type_name, _FLOATS.get(type_name, 0), 0)


@functools.cache
def is_readable(type_name: str) -> bool:
    """Whether the installed gguf package turns a type into floats."""
    gguf = import_gguf()
    kind = gguf.constants.GGMLQuantizationType[type_name]
    block = np.zeros((1, gguf.constants.GGML_QUANT_SIZES[kind][1]), np.uint8)
    try:
        gguf.quants.dequantize(block, kind)
    except NotImplementedError:
        return False
    return True


def read_rows(file: Path, tensor: GgufTensor, first: int, count: int) -> FloatArray:
    """Some rows of a tensor; nothing else of it is read.

    Args:
        file: the one that the tensor lies in.
        tensor: of a readable type; all but its last dimension count rows.
        first: number of the first row.
        count: how many rows.

    Returns:
        float32 [count, K], newly allocated.

    Raises:
        CheckpointError: the file has become shorter since its header was read.
    """
    quants = import_gguf().quants
    kind = import_gguf().constants.GGMLQuantizationType[tensor.type_name]
    assert first + count <= prod(tensor.shape[:-1])
    columns = tensor.shape[-1]
    rows = np.empty((count, columns), np.float32)
    at_once = max(1, _CHUNK // columns)
    for start in range(0, count, at_once):
        part = min(at_once, count - start)
        offset = tensor.offset + (first + start) * tensor.row_bytes
        data = np.frombuffer(read_bytes(file, offset, part * tensor.row_bytes), np.uint8)
        # NaN and infinity are refused by whoever asked, by name.
        with np.errstate(invalid="ignore", over="ignore"):
            rows[start : start + part] = quants.dequantize(data.reshape(part, -1), kind)
    return rows
