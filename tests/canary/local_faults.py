"""Faults of one layer, one expert, or a few bytes, beside those of whole models in `faults.py`."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import onnx
from onnx import helper

from .faults import Fault, Weights, _after, _constant, _find, _insert_before, _outputs


def bias_dropped_in(layer: int) -> Fault:
    """One layer's experts are chosen by their probabilities alone."""

    def fault(model: onnx.ModelProto, weights: Weights) -> None:
        for name in weights.names(f"layers.{layer}.", "expert_bias"):
            weights.map(name)[:] = 0

    return fault


def expert_zeroed(layer: int, expert: int) -> Fault:
    """One expert answers nothing."""

    def fault(model: onnx.ModelProto, weights: Weights) -> None:
        names = weights.names(f"layers.{layer}.", "experts.fc2.")
        # Zero scales make quantized weights zero; without scales, the weights themselves.
        for name in [name for name in names if name.endswith("scales")] or names:
            weights.map(name)[expert] = 0

    return fault


def expert_swapped(layer: int, expert: int) -> Fault:
    """w1 in the place of w3, in one expert."""

    def fault(model: onnx.ModelProto, weights: Weights) -> None:
        for name in weights.names(f"layers.{layer}.", "experts.fc1."):
            rows = weights.map(name)[expert]
            rows[:] = rows.reshape(-1, 2, rows.shape[-1])[:, ::-1].reshape(rows.shape)

    return fault


def experts_exchanged(layer: int, expert: int) -> Fault:
    """An expert and the next have each other's second matrix."""

    def fault(model: onnx.ModelProto, weights: Weights) -> None:
        for name in weights.names(f"layers.{layer}.", "experts.fc2."):
            numbers = weights.map(name)
            numbers[[expert, expert + 1]] = numbers[[expert + 1, expert]]

    return fault


def conv_state_zeroed_in(layer: int) -> Fault:
    """One convolution begins every call with nothing before it."""

    def fault(model: onnx.ModelProto, weights: Weights) -> None:
        (name,) = _outputs(model, f"present.{layer}.", "conv")
        _after(model, name, "Mul", _constant(model, np.float32(0)))

    return fault


def kv_row_stale_in(number: int) -> Fault:
    """While decoding, the keys and values of one attention (the first is 0) are not written."""

    def fault(model: onnx.ModelProto, weights: Weights) -> None:
        one = _constant(model, np.int64(1))
        shape = helper.make_node("Shape", ["input_ids"], ["fault.shape"])
        steps = helper.make_node("Gather", ["fault.shape", one], ["fault.s"])
        single = helper.make_node("Equal", ["fault.s", one], ["fault.single"])
        _insert_before(model, model.graph.node[0], shape, steps, single)
        node = _find(model, "GroupQueryAttention")[number]
        for place, past in ((1, node.input[3]), (2, node.input[4])):
            name, node.output[place] = node.output[place], f"{node.output[place]}.right"
            parts = ["fault.single", past, node.output[place]]
            model.graph.node.append(helper.make_node("Where", parts, [name]))

    return fault


def bytes_inverted(count: int, seed: int = 0) -> Fault:
    """So many bytes of the largest kind of weights are inverted, anywhere in the file."""

    def fault(model: onnx.ModelProto, weights: Weights) -> None:
        endings = (".q4", ".q8", ".weight.fp32", ".fc1.fp32", ".fc2.fp32")
        names = [name for name in weights.names() if name.endswith(endings)]
        parts = [weights.map(name).reshape(-1).view(np.uint8) for name in names]
        ends = np.cumsum([len(part) for part in parts])
        for at in np.random.default_rng(seed).choice(ends[-1], count, replace=False):
            which = int(np.searchsorted(ends, at, side="right"))
            parts[which][at - (ends[which] - len(parts[which]))] ^= 0xFF

    return fault


def list_local_faults(
    moe_layers: list[int], conv_layers: list[int], attentions: int, experts: list[int]
) -> Iterator[tuple[str, str, Fault]]:
    """(kind, place, fault) of each layer, and of some experts of each mixture."""
    for layer in moe_layers:
        yield "experts' bias dropped in one layer", str(layer), bias_dropped_in(layer)
    for kind, make in (
        ("one expert answers zero", expert_zeroed),
        ("gate and up swapped in one expert", expert_swapped),
        ("two experts' second matrices exchanged", experts_exchanged),
    ):
        for layer in moe_layers:
            for expert in experts:
                yield kind, f"{layer}.{expert}", make(layer, expert)
    for layer in conv_layers:
        yield "one layer's conv state zeroed", str(layer), conv_state_zeroed_in(layer)
    for number in range(attentions):
        yield "one attention's rows not written", str(number), kv_row_stale_in(number)
    for count in (1, 10, 100, 1_000, 4_000, 40_000):
        yield f"{count:,} bytes inverted", "anywhere", bytes_inverted(count)
