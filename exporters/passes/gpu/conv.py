"""lfm2::CausalConv -> the provider's own operator, or Concat, Conv and Slice."""

from __future__ import annotations

import numpy as np

from exporters.draft import MICROSOFT, Draft, Rewriter, name_of
from exporters.passes.weights import plain_weight

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
    hidden, width = draft.config.hidden_size, draft.config.conv_state_width
    for node in draft.find("CausalConv"):
        x, weight, past, _ = node.inputs
        rewriter = Rewriter(draft, node)
        op, ints = rewriter.op, rewriter.ints
        columns = op("Concat", [past, op("Transpose", [x], perm=[0, 2, 1])], axis=2)
        kernel = plain_weight(draft, name_of(weight))
        y = op("Conv", [columns, kernel], group=hidden, kernel_shape=[width + 1])
        present = op("Slice", [columns, ints(-width), ints(_TO_THE_END), ints(2)])
        rewriter.finish(op("Transpose", [y], perm=[0, 2, 1]), present)
