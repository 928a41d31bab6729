"""Bundles for the CPU with one thing wrong, as edits of graph and weights that really run."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import helper, numpy_helper

from lfm2_deploy.bundle import GRAPH, WEIGHTS, Bundle

# Edits the graph, or the weights file, or both.
Fault = Callable[[onnx.ModelProto, "Weights"], None]
_INFINITE_IN_HALF = 1e6


class Weights:
    """The weights file of a copied bundle, by initializer."""

    def __init__(self, model: onnx.ModelProto, file: Path) -> None:
        self._file = file
        self.tensors = {t.name: t for t in model.graph.initializer if t.data_location == t.EXTERNAL}

    def names(self, *parts: str) -> list[str]:
        return [name for name in self.tensors if all(part in name for part in parts)]

    def map(self, name: str) -> np.ndarray[Any, Any]:
        """The numbers in the file, to be written in place."""
        tensor = self.tensors[name]
        places = {entry.key: entry.value for entry in tensor.external_data}
        dtype = helper.tensor_dtype_to_np_dtype(tensor.data_type)
        return np.memmap(self._file, dtype, "r+", int(places["offset"]), tuple(tensor.dims))


def plant(bundle: Bundle, folder: Path, fault: Fault) -> Bundle:
    """A copy of a bundle with a fault; its manifest still tells of the one that was right."""
    shutil.copytree(bundle.path, folder)
    model = onnx.load(folder / GRAPH, load_external_data=False)
    weights = Weights(model, folder / WEIGHTS)
    fault(model, weights)
    onnx.save(model, folder / GRAPH)
    return replace(bundle, path=folder)


def conv_state_zeroed(model: onnx.ModelProto, weights: Weights) -> None:
    """Convolutions begin every call with nothing before it."""
    for name in _outputs(model, "present.", ".conv"):
        _after(model, name, "Mul", _constant(model, np.float32(0)))


def conv_state_shifted(model: onnx.ModelProto, weights: Weights) -> None:
    """Conv states are taken one column early."""
    for node in _find(model, "Add"):
        if node.input[1] == "ints.0_1":
            node.input[1] = _constant(model, np.array([-1, 0]))


def conv_state_of_padding(model: onnx.ModelProto, weights: Weights) -> None:
    """Conv states are taken at the end of a padded row, not of its tokens."""
    unsqueeze = next(n for n in _find(model, "Unsqueeze") if "CausalConv" in n.name)
    shape = helper.make_node("Shape", ["input_ids"], ["fault.shape"])
    axis = _constant(model, np.array([1]))
    steps = helper.make_node("Gather", ["fault.shape", axis], ["fault.steps"])
    zeros = helper.make_node(
        "Mul", [unsqueeze.input[0], _constant(model, np.int64(0))], ["fault.0"]
    )
    widest = helper.make_node("Add", ["fault.0", "fault.steps"], ["fault.widest"])
    _insert_before(model, unsqueeze, shape, steps, zeros, widest)
    unsqueeze.input[0] = "fault.widest"


def expert_bias_dropped(model: onnx.ModelProto, weights: Weights) -> None:
    """Experts are chosen by their probabilities alone."""
    for name in weights.names("expert_bias"):
        weights.map(name)[:] = 0


def gate_and_up_swapped(model: onnx.ModelProto, weights: Weights) -> None:
    """w1 in the place of w3, in every block and every expert."""
    for name in weights.names("feed_forward.w1."):
        gate, up = weights.map(name), weights.map(name.replace(".w1.", ".w3."))
        gate[:], up[:] = up.copy(), gate.copy()
    for name in weights.names("experts.fc1."):
        rows = weights.map(name)
        rows[:] = rows.reshape(len(rows), -1, 2, rows.shape[-1])[:, :, ::-1].reshape(rows.shape)


def kv_row_stale(model: onnx.ModelProto, weights: Weights) -> None:
    """While decoding, new keys and values do not reach the buffer."""
    shape = helper.make_node("Shape", ["input_ids"], ["fault.shape"])
    steps = helper.make_node("Gather", ["fault.shape", _constant(model, np.int64(1))], ["fault.s"])
    single = helper.make_node("Equal", ["fault.s", _constant(model, np.int64(1))], ["fault.single"])
    _insert_before(model, model.graph.node[0], shape, steps, single)
    for node in _find(model, "GroupQueryAttention"):
        for place, past in ((1, node.input[3]), (2, node.input[4])):
            name, node.output[place] = node.output[place], f"{node.output[place]}.right"
            where = helper.make_node("Where", ["fault.single", past, node.output[place]], [name])
            model.graph.node.append(where)


def kv_row_misplaced(model: onnx.ModelProto, weights: Weights) -> None:
    """New keys and values are written one row early, over the last."""
    nodes = _find(model, "GroupQueryAttention")
    lengths, new = nodes[0].input[5], nodes[0].input[-1]
    one = _constant(model, np.int32(1))
    early = helper.make_node("Sub", [lengths, one], ["fault.early"])
    # A prompt has to fit where it begins.
    least = helper.make_node("Sub", [new, one], ["fault.least"])
    last = helper.make_node("Max", ["fault.early", "fault.least"], ["fault.at"])
    _insert_before(model, nodes[0], early, least, last)
    for node in _find(model, "GroupQueryAttention"):
        node.input[5] = "fault.at"


def wrong_rope_theta(model: onnx.ModelProto, weights: Weights) -> None:
    """Positions turn with a base of 1,000."""
    tables = {t.name: t for t in model.graph.initializer if t.name in ("rope.cos", "rope.sin")}
    for name, function in (("rope.cos", np.cos), ("rope.sin", np.sin)):
        table = (
            weights.map(name) if name in weights.tensors else numpy_helper.to_array(tables[name])
        )
        half = table.shape[-1]
        angles = np.arange(len(table))[:, None] / 1_000.0 ** (np.arange(half) / half)
        wrong = function(angles).astype(np.float32)
        if name in weights.tensors:
            table[:] = wrong
        else:
            tables[name].CopyFrom(numpy_helper.from_array(wrong, name))


def saturated_half(model: onnx.ModelProto, weights: Weights) -> None:
    """The last layer's hidden states are clipped where float16 ends."""
    _clip(model, 65504.0)


def overflowed_half(model: onnx.ModelProto, weights: Weights) -> None:
    """The last layer's hidden states become infinite where float16 ends."""
    node = _last_norm(model)
    wide = _constant(model, np.float32(_INFINITE_IN_HALF))
    narrow = [
        helper.make_node("Mul", [node.input[1], wide], ["fault.large"]),
        helper.make_node("Cast", ["fault.large"], ["fault.half"], to=onnx.TensorProto.FLOAT16),
        helper.make_node("Cast", ["fault.half"], ["fault.float"], to=onnx.TensorProto.FLOAT),
        helper.make_node("Div", ["fault.float", wide], ["fault.back"]),
    ]
    _insert_before(model, node, *narrow)
    node.input[1] = "fault.back"


def saturated_int8(model: onnx.ModelProto, weights: Weights) -> None:
    """The inner values of the first block stay within a range that is too small."""
    block = next(n for n in model.graph.node if n.input[1:2] and ".w2." in n.input[1])
    limit = 0.01
    edges = [_constant(model, np.float32(x)) for x in (-limit, limit)]
    clip = helper.make_node("Clip", [block.input[0], *edges], ["fault.clipped"])
    _insert_before(model, block, clip)
    block.input[0] = "fault.clipped"


def _clip(model: onnx.ModelProto, limit: float) -> None:
    node = _last_norm(model)
    wide = _constant(model, np.float32(_INFINITE_IN_HALF))
    edges = [_constant(model, np.float32(x)) for x in (-limit, limit)]
    narrow = [
        helper.make_node("Mul", [node.input[1], wide], ["fault.large"]),
        helper.make_node("Clip", ["fault.large", *edges], ["fault.clipped"]),
        helper.make_node("Div", ["fault.clipped", wide], ["fault.back"]),
    ]
    _insert_before(model, node, *narrow)
    node.input[1] = "fault.back"


def not_a_number(model: onnx.ModelProto, weights: Weights) -> None:
    """One of the last layer's hidden values is NaN."""
    node = _last_norm(model)
    bad = _constant(model, np.float32(np.nan))
    _insert_before(model, node, helper.make_node("Add", [node.input[1], bad], ["fault.nan"]))
    node.input[1] = "fault.nan"


def flipped_bit(model: onnx.ModelProto, weights: Weights) -> None:
    """The highest bit of one number's exponent, in a convolution of the middle."""
    names = weights.names("conv.conv.weight")
    numbers = weights.map(names[len(names) // 2])
    numbers.view(np.uint32)[5, 0, 1] ^= np.uint32(1 << 30)


def layers_swapped(model: onnx.ModelProto, weights: Weights) -> None:
    """Two layers have each other's feed-forward gate."""
    first, *others = weights.names("feed_forward.w1.")
    shape = weights.map(first).shape
    second = next(name for name in others if weights.map(name).shape == shape)
    a, b = weights.map(first), weights.map(second)
    a[:], b[:] = b.copy(), a.copy()


FAULTS: Mapping[str, Fault] = {
    fault.__name__: fault
    for fault in (
        conv_state_zeroed,
        conv_state_shifted,
        conv_state_of_padding,
        expert_bias_dropped,
        gate_and_up_swapped,
        kv_row_stale,
        kv_row_misplaced,
        wrong_rope_theta,
        saturated_half,
        overflowed_half,
        saturated_int8,
        not_a_number,
        flipped_bit,
        layers_swapped,
    )
}


def _find(model: onnx.ModelProto, op_type: str) -> list[onnx.NodeProto]:
    return [node for node in model.graph.node if node.op_type == op_type]


def _last_norm(model: onnx.ModelProto) -> onnx.NodeProto:
    """The norm after the last layer's mixer; its second input is what is added to the rest."""
    return _find(model, "SkipSimplifiedLayerNormalization")[-2]


def _outputs(model: onnx.ModelProto, start: str, end: str) -> list[str]:
    names = [output.name for output in model.graph.output]
    return [name for name in names if name.startswith(start) and name.endswith(end)]


def _constant(model: onnx.ModelProto, value: Any) -> str:
    name = f"fault.constant.{len(model.graph.initializer)}"
    model.graph.initializer.append(numpy_helper.from_array(np.asarray(value), name))
    return name


def _after(model: onnx.ModelProto, name: str, op_type: str, other: str) -> None:
    """Put a node between an output and what gives it."""
    for node in model.graph.node:
        for place, output in enumerate(node.output):
            if output == name:
                node.output[place] = f"{name}.right"
    model.graph.node.append(helper.make_node(op_type, [f"{name}.right", other], [name]))


def _insert_before(model: onnx.ModelProto, node: onnx.NodeProto, *others: onnx.NodeProto) -> None:
    place = next(i for i, found in enumerate(model.graph.node) if found is node or found == node)
    for offset, other in enumerate(others):
        model.graph.node.insert(place + offset, other)
