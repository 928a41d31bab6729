"""Cut a mixture of experts for prompts that the host routes; `lfm2_deploy/gpu_graphs.py` says how.

A cut comes right after the frame, so that later passes see a small graph.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import onnx_ir as ir

from exporters.draft import Draft, Rewriter
from exporters.passes.clean_up import leave_only
from exporters.passes.lower_experts import layer_of, next_sum
from lfm2_deploy.gpu_graphs import HIDDEN, LOGITS, PROBABILITIES, RESIDUAL, SCORES, STEPS, X
from lfm2_deploy.states import list_states


def leave_segment(start: int | None, end: int | None) -> Callable[[Draft], None]:
    """A pass that leaves what lies between two layers' experts.

    Args:
        start: the layer whose experts are the last before it; None to begin with token ids.
        end: the layer whose experts come after it; None to end with logits.
    """

    def leave(draft: Draft) -> None:
        nodes = {layer_of(node): node for node in draft.find("Experts")}
        outputs = _list_state_outputs(draft, start, end)
        if end is None:
            outputs.insert(0, next(v for v in draft.graph.outputs if v.name == LOGITS))
        else:
            outputs = [*_end(draft, nodes[end]), *outputs]
        inputs = [*draft.graph.inputs]
        if start is not None:
            inputs.insert(0, _begin(draft, nodes[start]))
        # Inputs that are not read are dropped by a later pass.
        leave_only(draft, inputs, outputs)

    return leave


def declare(name: str, dtype: ir.DataType, shape: Sequence[int | str]) -> ir.Value:
    """An input to be."""
    return ir.Value(name=name, shape=ir.Shape(shape), type=ir.TensorType(dtype))


def describe(value: ir.Value, name: str, dtype: ir.DataType, shape: Sequence[int | str]) -> None:
    """Give an output to be its name, type and shape."""
    value.name, value.type, value.shape = name, ir.TensorType(dtype), ir.Shape(shape)


def _begin(draft: Draft, node: ir.Node) -> ir.Value:
    """Let an input stand for the sum after experts."""
    add, _ = next_sum(node)
    hidden = declare(HIDDEN, draft.dtype, (1, STEPS, draft.config.hidden_size))
    Rewriter(draft, add).finish(hidden)
    return hidden


def _end(draft: Draft, node: ir.Node) -> list[ir.Value]:
    """What experts read, as outputs."""
    assert draft.config.moe is not None
    x, scores, probabilities = node.inputs[:3]
    _, residual = next_sum(node)
    narrow = (draft.dtype, draft.config.hidden_size)
    wide = (ir.DataType.FLOAT, draft.config.moe.num_experts)
    if scores is probabilities:  # a router without a bias
        assert scores is not None
        copy = ir.node("Identity", [scores], name=f"{SCORES}/Identity")
        draft.graph.insert_before(node, copy)
        scores = copy.outputs[0]
    ends = []
    for value, name, (dtype, width) in (
        (x, X, narrow),
        (residual, RESIDUAL, narrow),
        (scores, SCORES, wide),
        (probabilities, PROBABILITIES, wide),
    ):
        assert value is not None
        describe(value, name, dtype, (1, STEPS, width))
        ends.append(value)
    return ends


def _list_state_outputs(draft: Draft, start: int | None, end: int | None) -> list[ir.Value]:
    """New states of the layers between."""
    first = 0 if start is None else start + 1
    last = draft.config.num_hidden_layers - 1 if end is None else end
    specs = list_states(draft.config)
    names = {spec.output for spec in specs if first <= spec.layer <= last}
    return [value for value in draft.graph.outputs if value.name in names]
