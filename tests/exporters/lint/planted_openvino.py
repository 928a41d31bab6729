"""Faults of OpenVINO's targets."""

from __future__ import annotations

import numpy as np
from onnx import ValueInfoProto, helper

from .building import IrSketch, Sketch, op
from .plants import experts, plant


@plant("npu/not-imported", "igpu/not-imported", "openvino-cpu/not-imported")
def _(bad: bool) -> Sketch:
    return experts() if bad else Sketch([op("Sigmoid")])


@plant("npu/dynamic-shape", "qnn/dynamic-shape")
def _(bad: bool) -> Sketch:
    return Sketch([op("Sigmoid")], {"x": ("float32", [1, "n" if bad else 8])})


@plant("npu/control-flow")
def _(bad: bool) -> Sketch:
    branch = helper.make_graph(
        [op("Sigmoid", "x", "inner")], "b", [], [ValueInfoProto(name="inner")]
    )
    node = op("If", "c", then_branch=branch, else_branch=branch) if bad else op("Sigmoid")
    return Sketch([node], {"x": ("float32", [1, 8]), "c": ("bool", [])})


@plant("npu/gathered-experts")
def _(bad: bool) -> Sketch:
    nodes = [op("DequantizeLinear", "w s", "d"), op("Gather", "d i", "e"), op("MatMul", "x e")]
    chosen = [op("DequantizeLinear", "w s", "d"), op("MatMul", "x d")]
    return Sketch(
        nodes if bad else chosen,
        {"x": ("float32", [1, 64]), "i": ("int64", [1])},
        {"w": ("int4", [4, 64, 64]), "s": ("float32", [])},
    )


@plant("npu/weights-as-inputs")
def _(bad: bool) -> Sketch:
    weights = ("int4", [64, 64])
    given = {"x": ("float32", [1, 64])} | ({"w": weights} if bad else {})
    nodes = [op("DequantizeLinear", "w s", "d"), op("MatMul", "x d")]
    return Sketch(nodes, given, {"s": ("float32", [])} | ({} if bad else {"w": weights}))


@plant("npu/grouped-weights")
def _(bad: bool) -> Sketch:
    node = op("DequantizeLinear", "w s", axis=1, block_size=32 if bad else 0)
    return Sketch([node], constants={"w": ("int4", [64, 64]), "s": ("float32", [64, 2])})


@plant("npu/zero-points")
def _(bad: bool) -> Sketch:
    return Sketch(
        [op("DequantizeLinear", "x s z")],
        {"x": ("uint8", [8])},
        {"s": ("float32", []), "z": np.array(3 if bad else 0, np.uint8)},
    )


def stateful(
    inputs: str = "input_ids attention_mask position_ids beam_idx",
    state: str = "cache_params.past.conv.0cache_params.present.conv.0",
    width: int = 128,
) -> IrSketch:
    """An IR of one state and one 4-bit matrix."""
    given = [("Parameter", name, "I64", [-1, -1], {}, []) for name in inputs.split()]
    rest = [
        ("ReadValue", "state", "FP32", [-1, 64, 2], {"variable_id": state}, []),
        ("Const", "w", "I4", [128, width], {}, []),
        ("Convert", "wide", "FP16", [128, width], {}, ["w"]),
    ]
    return IrSketch([*given, *rest])


@plant("npu/genai-inputs", "igpu/genai-inputs", "openvino-cpu/genai-inputs")
def _(bad: bool) -> IrSketch:
    return stateful("input_ids attention_mask") if bad else stateful()


@plant("npu/state-names")
def _(bad: bool) -> IrSketch:
    return stateful(state="past_conv.0") if bad else stateful()


@plant("npu/odd-weights")
def _(bad: bool) -> IrSketch:
    return stateful(width=96 if bad else 128)


@plant("npu/conv-mask")
def _(bad: bool) -> IrSketch:
    """optimum-intel's `attention_mask[:, :s]`, and the last columns instead."""
    return IrSketch(
        [
            ("Parameter", "attention_mask", "I64", [-1, -1], {}, []),
            ("Parameter", "bx", "FP32", [-1, -1, 64], {}, []),
            ("Const", "start", "I64", [1], {}, []),
            ("ShapeOf", "tokens", "I64", [1], {}, ["bx"]),
            ("Slice", "cut", "I64", [-1, -1], {}, ["attention_mask", "start", "tokens"]),
            ("Unsqueeze", "column", "I64", [-1, -1, 1], {}, ["cut"]),
            ("Convert", "mask", "FP32", [-1, -1, 1], {}, ["column"]),
            ("Multiply", "masked", "FP32", [-1, -1, 64], {}, ["bx", "mask"]),
        ],
        {"start": [0 if bad else -1]},
    )


@plant("igpu/int8-experts")
def _(bad: bool) -> IrSketch:
    return IrSketch(
        [
            ("Const", "w", "I8" if bad else "I4", [4, 64, 64], {}, []),
            ("Convert", "wide", "FP16", [4, 64, 64], {}, ["w"]),
        ]
    )
