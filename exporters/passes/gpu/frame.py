"""The inputs and outputs of a graph for GPUs; `lfm2_deploy/gpu_graphs.py` says what they are."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import onnx_ir as ir

from exporters.draft import Draft, Rewriter, name_of
from exporters.stitch import ATTENTION_MASK, LOGITS_TO_KEEP
from lfm2_deploy.errors import ExportError
from lfm2_deploy.gpu_graphs import (
    CONV_ENDS,
    EVERY_LAYER,
    INPUT_IDS,
    LOGIT_COUNT,
    LOGIT_ROWS,
    LOGITS,
    POSITIONS,
    SEQLENS,
    STEPS,
    TOTAL,
    fill_in,
)

# Bytes: norms and biases are not worth an input.
_SMALL = 1024
# Kernels of convolutions, which providers reorder while a graph is loaded.
_KERNEL = (".conv.weight.fp32", ".conv.weight.fp16")


def gpu_frame(draft: Draft) -> None:
    """Replace lengths, mask and counts by what the host computes; retype everything else."""
    graph = draft.graph
    for value in (*graph.inputs, *graph.outputs):
        _set_batch(value)
        if value.name not in (INPUT_IDS, LOGITS) and value.dtype == ir.DataType.FLOAT:
            value.type = ir.TensorType(draft.dtype)
    _forget_types(draft)
    inputs: dict[str, tuple[ir.DataType, tuple[int | str, ...]]] = {
        POSITIONS: (ir.DataType.INT64, (1, STEPS)),
        SEQLENS: (ir.DataType.INT32, (1,)),
        TOTAL: (ir.DataType.INT32, (1,)),
        LOGIT_ROWS: (ir.DataType.INT64, (LOGIT_COUNT,)),
        CONV_ENDS: (ir.DataType.INT64, (draft.config.conv_state_width,)),
    }
    for name, (dtype, shape) in inputs.items():
        value = ir.Value(name=name, shape=ir.Shape(shape), type=ir.TensorType(dtype))
        draft.shared[name] = value
    _take_rows(draft)
    _leave_lengths(draft)
    states = [v for v in graph.inputs if v.name not in (INPUT_IDS, ATTENTION_MASK, LOGITS_TO_KEEP)]
    ids = next(v for v in graph.inputs if v.name == INPUT_IDS)
    graph.inputs.clear()
    graph.inputs.extend([ids, *(draft.shared[name] for name in inputs), *states])


def _set_batch(value: ir.Value) -> None:
    """One row: its states belong to one session."""
    assert value.shape is not None
    value.shape = ir.Shape([1, *list(value.shape)[1:]])
    if value.name == LOGITS:
        value.shape = ir.Shape([1, LOGIT_COUNT, value.shape[2]])


def _forget_types(draft: Draft) -> None:
    """Traced in float32; what a value becomes depends on the type computed in."""
    for node in draft.graph:
        for value in node.outputs:
            if not value.is_graph_output():
                value.type = value.shape = None


def _take_rows(draft: Draft) -> None:
    (node,) = draft.find("TakeLast")
    rewriter = Rewriter(draft, node)
    rewriter.finish(rewriter.op("Gather", [node.inputs[0], draft.shared[LOGIT_ROWS]], axis=1))


def _leave_lengths(draft: Draft) -> None:
    """The nodes that read lengths are given what the host knows instead."""
    (node,) = draft.find("Lengths")
    for value in node.outputs:
        value.replace_all_uses_with(draft.shared[TOTAL])
    draft.graph.remove(node, safe=True)


def drop_unused_inputs(draft: Draft) -> None:
    """Take away the inputs that no node reads, such as positions where RoPE is fused."""
    kept = [value for value in draft.graph.inputs if value.uses()]
    draft.graph.inputs.clear()
    draft.graph.inputs.extend(kept)


def widen_logits(draft: Draft) -> None:
    """Logits leave as float32, whatever the graph computes in; not each part of one has any."""
    logits = next((value for value in draft.graph.outputs if value.name == LOGITS), None)
    node = None if logits is None else logits.producer()
    if draft.dtype == ir.DataType.FLOAT or logits is None or node is None:
        return
    wide = ir.node("Cast", [logits], {"to": ir.DataType.FLOAT}, name=f"{LOGITS}/Cast")
    draft.graph.insert_after(node, wide)
    (out,) = wide.outputs
    index = list(draft.graph.outputs).index(logits)
    out.shape, out.type = logits.shape, ir.TensorType(ir.DataType.FLOAT)
    logits.name, out.name = f"{LOGITS}.narrow", LOGITS
    logits.type = logits.shape = None
    draft.graph.outputs[index] = out


def bind_weights(draft: Draft) -> None:
    """Make inputs of all weights but the smallest, so that several sessions read them from one
    place: each keeps initializers of its own on its device."""
    for name, value in list(draft.graph.initializers.items()):
        declared = draft.book.declared.get(name)
        if declared is None or declared.size_bytes < _SMALL or name.endswith(_KERNEL):
            continue
        del draft.graph.initializers[name]
        draft.graph.inputs.append(value)
        draft.bound.append(name)


def bind_layers(layers: Sequence[int]) -> Callable[[Draft], None]:
    """A pass for a graph of the first of these layers, after which it serves them all.

    Every weight and state of the layer is bound, however small: its name has EVERY_LAYER for
    the layer's number.
    """

    def bind(draft: Draft) -> None:
        for name, value in list(draft.graph.initializers.items()):
            pattern = _generalize(name, layers[0])
            if name in draft.book.declared and pattern != name:
                del draft.graph.initializers[name]
                value.name = pattern
                draft.graph.inputs.append(value)
                draft.bound.extend(_list_alike(draft, name, pattern, layers))
        for value in (*draft.graph.inputs, *draft.graph.outputs):
            value.name = _generalize(name_of(value), layers[0])
        bind_weights(draft)

    return bind


def _generalize(name: str, layer: int) -> str:
    return name.replace(f".{layer}.", f".{EVERY_LAYER}.", 1)


def _list_alike(draft: Draft, name: str, pattern: str, layers: Sequence[int]) -> list[str]:
    """The weights that an input stands for, in layers that are stored alike."""
    names, declared = [fill_in(pattern, layer) for layer in layers], draft.book.declared
    kind = (declared[name].dtype, declared[name].shape)
    for other in names:
        found = declared.get(other)
        if found is None or (found.dtype, found.shape) != kind:
            raise ExportError(f"{other} is not stored as {name} is, and layers share a graph")
    return names


def take_one_token(draft: Draft) -> None:
    """Fix S to 1, and the one row of logits."""
    for value in (*draft.graph.inputs, *draft.graph.outputs):
        assert value.shape is not None
        fixed = {STEPS: 1, LOGIT_COUNT: 1}
        value.shape = ir.Shape([fixed.get(str(d), d) for d in value.shape])
