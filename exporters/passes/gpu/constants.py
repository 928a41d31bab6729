"""Scalars in the type that a graph computes in."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from exporters.draft import Rewriter


def scalar(rewriter: Rewriter, value: float, dtype: ir.DataType | None = None) -> ir.Value:
    """A scalar, declared once for each value and type.

    Args:
        rewriter: of the node that reads it.
        value: the number.
        dtype: None for the type that the graph computes in.
    """
    draft = rewriter.draft
    dtype = draft.dtype if dtype is None else dtype
    name = f"{dtype.name.lower()}.{value!r}"
    return draft.book.constant(draft.graph, name, np.array(value, dtype.numpy()))
