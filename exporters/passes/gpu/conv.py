"""lfm2::CausalConv -> the provider's own operator, or Concat, Conv and Slice."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import onnx_ir as ir

from exporters.draft import MICROSOFT, Draft, Rewriter, name_of
from exporters.passes.weights import plain_weight
from lfm2_deploy.gpu_graphs import CONV_ENDS

_TO_THE_END = np.iinfo(np.int64).max


def lower_fused_conv(draft: Draft) -> None:
    """Lower every convolution by CausalConvWithState.

    Channels come first: the operator of onnxruntime-webgpu 1.27.0 knows no `channels_last`.
    Without padding the kernel's own new state is the right one.
    """
    for node in draft.find("CausalConv"):
        x, weight, past, _ = node.inputs
        rewriter = Rewriter(draft, node)
        columns = rewriter.op("Transpose", [x], perm=[0, 2, 1])
        kernel = plain_weight(draft, name_of(weight))
        y, present = rewriter.op(
            "CausalConvWithState", [columns, kernel, None, past],
            domain=MICROSOFT, outputs=2, activation="none",
        )  # fmt: skip
        rewriter.finish(rewriter.op("Transpose", [y], perm=[0, 2, 1]), present)


def lower_plain_conv(draft: Draft) -> None:
    """Lower every convolution to Concat, a depthwise Conv, and Slice for the new state."""
    _lower_plainly(draft, _slice_end)


def lower_padded_conv(draft: Draft) -> None:
    """As `lower_plain_conv`, for rows with padding: the host says which columns are the last."""
    _lower_plainly(draft, _gather_end)


def _lower_plainly(draft: Draft, end: Callable[[Rewriter, ir.Value], ir.Value]) -> None:
    hidden, width = draft.config.hidden_size, draft.config.conv_L_cache
    for node in draft.find("CausalConv"):
        x, weight, past, _ = node.inputs
        rewriter = Rewriter(draft, node)
        op = rewriter.op
        columns = op("Concat", [past, op("Transpose", [x], perm=[0, 2, 1])], axis=2)
        kernel = plain_weight(draft, name_of(weight))
        y = op("Conv", [columns, kernel], group=hidden, kernel_shape=[width])
        rewriter.finish(op("Transpose", [y], perm=[0, 2, 1]), end(rewriter, columns))


def _slice_end(rewriter: Rewriter, columns: ir.Value) -> ir.Value:
    ints, width = rewriter.ints, rewriter.draft.config.conv_state_width
    end: ir.Value = rewriter.op("Slice", [columns, ints(-width), ints(_TO_THE_END), ints(2)])
    return end


def _gather_end(rewriter: Rewriter, columns: ir.Value) -> ir.Value:
    end: ir.Value = rewriter.op("Gather", [columns, rewriter.draft.shared[CONV_ENDS]], axis=2)
    return end
