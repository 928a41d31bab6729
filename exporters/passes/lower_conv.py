"""lfm2::CausalConv -> CausalConvWithState, with the state taken at each row's true end."""

from __future__ import annotations

import onnx_ir as ir

from exporters.draft import MICROSOFT, Draft, Rewriter, name_of
from exporters.passes.weights import plain_weight
from lfm2_deploy.states import BATCH, list_states


def lower_conv(draft: Draft) -> None:
    """Lower every causal convolution.

    The kernel's own present state ends at the last column, padding included, so it is
    left unread; the last L-1 columns before each row's end are gathered instead. The
    columns they are gathered from are an output of their own, which costs nothing where
    it is not asked for.
    """
    specs = {spec.input: spec for spec in list_states(draft.config)}
    for node in draft.find("CausalConv"):
        x, weight, past, new = node.inputs
        rewriter, spec = Rewriter(draft, node), specs.get(name_of(past))
        kernel = plain_weight(draft, name_of(weight))
        # Channels last, as the projections are: only the small state is transposed.
        past = rewriter.op("Transpose", [past], perm=[0, 2, 1])
        y, _ = rewriter.op(
            "CausalConvWithState", [x, kernel, None, past],
            domain=MICROSOFT, outputs=2, channels_last=1, activation="none",
        )  # fmt: skip
        columns = rewriter.op("Concat", [past, x], axis=1)
        if spec is not None:
            _add_output(draft, columns, spec.window)
        width = draft.config.conv_state_width
        ends = rewriter.op("Unsqueeze", [new, rewriter.ints(1)])
        index = rewriter.op("Add", [ends, rewriter.ints(*range(width))])
        index = rewriter.op("Unsqueeze", [index, rewriter.ints(2)])
        present = rewriter.op("GatherND", [columns, index], batch_dims=1)
        rewriter.finish(y, rewriter.op("Transpose", [present], perm=[0, 2, 1]))


def _add_output(draft: Draft, columns: ir.Value, name: str) -> None:
    columns.name, columns.type = name, ir.TensorType(ir.DataType.FLOAT)
    columns.shape = ir.Shape((BATCH, "window_length", draft.config.hidden_size))
    draft.graph.outputs.append(columns)
