"""For every rule a graph with the fault planted, and its twin without.

A function here takes whether to plant the fault and returns the graph. The tests go through all
rules of all targets, so one without an entry fails.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from onnx import ValueInfoProto, helper

from .building import IrSketch, Sketch, ints, op

Build = Callable[[bool], Sketch | IrSketch]
PLANTED: dict[str, Build] = {}


def plant(*rules: str) -> Callable[[Build], Build]:
    """Say of which rules this is the fault."""

    def enter(build: Build) -> Build:
        PLANTED.update(dict.fromkeys(rules, build))
        return build

    return enter


# Any provider of ONNX Runtime


@plant("directml/not-registered")
def _(bad: bool) -> Sketch:
    return Sketch(
        [op("ms.CausalConvWithState" if bad else "Sigmoid", ndim=1) if bad else op("Sigmoid")]
    )


@plant("webgpu/not-registered")
def _(bad: bool) -> Sketch:
    node = op("ms.FusedMatMul" if bad else "MatMul", "x w")
    return Sketch([node], constants={"w": ("float32", [64, 8])})


@plant("cpu/not-registered")
def _(bad: bool) -> Sketch:
    node = op("ms.BiasAdd", "x w x") if bad else op("Add", "x w")
    return Sketch([node], constants={"w": ("float32", [64])})


@plant("directml/version")
def _(bad: bool) -> Sketch:
    return Sketch([op("Reshape", "x s")], constants={"s": ints(-1)}, opset=23 if bad else 21)


@plant("webgpu/version")
def _(bad: bool) -> Sketch:
    return Sketch([op("Cos")], opset=22 if bad else 21)


@plant("cpu/version")
def _(bad: bool) -> Sketch:
    # The first version of Add broadcast in another way; newer kernels do not take it.
    return Sketch([op("Add", "x x")], opset=6 if bad else 21)


@plant("directml/types", "webgpu/types")
def _(bad: bool) -> Sketch:
    return Sketch([op("Sqrt")], {"x": ("float64" if bad else "float32", [2, 3])})


@plant("cpu/types")
def _(bad: bool) -> Sketch:
    return Sketch(
        [op("Conv", "x w")],
        {"x": ("float64" if bad else "float32", [1, 2, 9])},
        {"w": ("float64" if bad else "float32", [2, 2, 3])},
    )


@plant("directml/shapes-on-cpu", "webgpu/shapes-on-cpu")
def _(bad: bool) -> Sketch:
    slices = [op("Shape", "x", "s"), op("Gather", "s one", "n"), op("Unsqueeze", "n zero", "y")]
    return Sketch(slices if bad else [op("Sigmoid")], constants={"one": ints(1), "zero": ints(0)})


# DirectML


@plant("directml/norm-outputs")
def _(bad: bool) -> Sketch:
    outputs = "y - inverse sum" if bad else "y - - sum"
    return Sketch(
        [op("ms.SkipSimplifiedLayerNormalization", "x x w", outputs)],
        constants={"w": ("float32", [64])},
    )


@plant("directml/skip-norm-shape")
def _(bad: bool) -> Sketch:
    shape = [1, 2, "n", 64] if bad else [1, "n", 64]
    return Sketch(
        [op("ms.SkipSimplifiedLayerNormalization", "x x w")],
        {"x": ("float32", shape)},
        {"w": ("float32", [64])},
    )


@plant("directml/scatter-reduction")
def _(bad: bool) -> Sketch:
    return Sketch(
        [op("ScatterND", "x i u", reduction="add" if bad else "none")],
        {"x": ("float32", [4, 4]), "i": ("int64", [1, 1]), "u": ("float32", [1, 4])},
        opset=17,
    )


@plant("directml/changing-operand")
def _(bad: bool) -> Sketch:
    limits = {"end": ("int64", [1])} if bad else {}
    fixed = {"start": ints(0), "axis": ints(1)} | ({} if bad else {"end": ints(3)})
    return Sketch([op("Slice", "x start end axis")], {"x": ("float32", [1, 9, 4])} | limits, fixed)


def matmul(
    inputs: str = "x w s z", bits: int = 4, k: int = 64, block: int = 32, **more: int
) -> Sketch:
    """One MatMulNBits of 64 inputs and 16 outputs."""
    blocks = -(-k // block)
    node = op("ms.MatMulNBits", inputs, K=k, N=16, bits=bits, block_size=block, **more)
    return Sketch(
        [node],
        {"x": ("float32", [1, "n", k])},
        {
            "w": ("uint8", [16, blocks, block * bits // 8]),
            "s": ("float32", [16, blocks]),
            "z": ("uint8", [16, -(-blocks * bits // 8)]),
            "f": ("float32", [16, blocks]),
            "g": ("int32", [k]),
        },
    )


@plant("directml/matmul-blocks")
def _(bad: bool) -> Sketch:
    return matmul(k=80 if bad else 64)


@plant("directml/matmul-inputs", "webgpu/matmul")
def _(bad: bool) -> Sketch:
    return matmul("x w s z g" if bad else "x w s z")


@plant("directml/matmul-float-zero-points")
def _(bad: bool) -> Sketch:
    return matmul("x w s f" if bad else "x w s z")


@plant("directml/matmul-odd-zero-points")
def _(bad: bool) -> Sketch:
    return matmul(bits=8, k=96 if bad else 64)


@plant("directml/matmul-default-zero-point")
def _(bad: bool) -> Sketch:
    return matmul("x w s" if bad else "x w s z", bits=8)


def rotary(data: int = 3, **attributes: float) -> Sketch:
    """One RotaryEmbedding of data of so many dimensions."""
    shape = [1, "n", 64] if data == 3 else [1] * (data - 2) + ["n", 64]
    return Sketch(
        [op("ms.RotaryEmbedding", "x p c c", **attributes)],
        {"x": ("float32", shape), "p": ("int64", [1, "n"])},
        {"c": ("float32", [128, 32])},
    )


@plant("directml/rotary-shape")
def _(bad: bool) -> Sketch:
    return rotary(5 if bad else 3)


@plant("directml/rotary-scale")
def _(bad: bool) -> Sketch:
    return rotary(scale=2.0 if bad else 1.0)


def attention(
    inputs: str = "q k v pk pv len total",
    tokens: int | str = "n",
    computed: bool = False,
    **more: int,
) -> Sketch:
    """One GroupQueryAttention of four heads over two, in buffers of 128 tokens."""
    node = op("ms.GroupQueryAttention", inputs, "y nk nv", num_heads=4, kv_num_heads=2, **more)
    total = [op("ReduceMax", "len", "total", keepdims=0)] if computed else []
    given = {
        "q": ("float32", [1, tokens, 64]),
        "k": ("float32", [1, tokens, 32]),
        "v": ("float32", [1, tokens, 32]),
        "pk": ("float32", [1, 2, 128, 16]),
        "pv": ("float32", [1, 2, 128, 16]),
        "len": ("int32", [1]),
    }
    given |= {} if computed else {"total": ("int32", [1])}
    norms = {"norm": ("float32", [16]), "rotation": ("float32", [128, 8])}
    return Sketch([*total, node], given, norms)


QK_NORM = "q k v pk pv len total rotation rotation - - - - - norm"


@plant("directml/attention-packed")
def _(bad: bool) -> Sketch:
    return attention("q - - pk pv len total" if bad else "q k v pk pv len total")


@plant("directml/attention-ignored")
def _(bad: bool) -> Sketch:
    return attention(do_rotary=int(bad))


@plant("directml/attention-refused", "cpu/attention-norms")
def _(bad: bool) -> Sketch:
    return attention(f"{QK_NORM} norm") if bad else attention()


@plant("directml/attention-chunk")
def _(bad: bool) -> Sketch:
    return attention(tokens=64 if bad else 1)


@plant("directml/attention-append")
def _(bad: bool) -> Sketch:
    return attention(tokens="n" if bad else 1)


@plant("directml/attention-total")
def _(bad: bool) -> Sketch:
    return attention(computed=bad)


# WebGPU


@plant("webgpu/int64")
def _(bad: bool) -> Sketch:
    return Sketch([op("Add", "x x")], {"x": ("int64" if bad else "int32", [1])})


def experts(inputs: str = "x r w s - v t", name: str = "ms.QMoE", **more: object) -> Sketch:
    """One QMoE of two experts, 64 wide."""
    attributes = {"k": 1, "expert_weight_bits": 4, "accuracy_level": 4, "swiglu_fusion": 1}
    attributes |= {"activation_type": "swiglu", "block_size": 32} | more
    kept = {key: value for key, value in attributes.items() if value is not None}
    return Sketch(
        [op(name, inputs, **kept)],
        {"x": ("float32", ["n", 64]), "r": ("float32", ["n", 2])},
        {
            "w": ("uint8", [2, 128, 32]),
            "s": ("float32", [2, 128, 2]),
            "v": ("uint8", [2, 64, 32]),
            "t": ("float32", [2, 64, 2]),
        },
    )


@plant("webgpu/qmoe-inputs")
def _(bad: bool) -> Sketch:
    return experts("x r w s - v t - - - - - - - r" if bad else "x r w s - v t")


@plant("webgpu/qmoe-bits")
def _(bad: bool) -> Sketch:
    return experts(expert_weight_bits=2 if bad else 4)


@plant("webgpu/attention-norms")
def _(bad: bool) -> Sketch:
    return attention(QK_NORM if bad else f"{QK_NORM} norm", do_rotary=1)


def conv(**attributes: object) -> Sketch:
    """One CausalConvWithState, 64 wide."""
    return Sketch(
        [op("ms.CausalConvWithState", "x w - p", "y state", **attributes)],
        {"x": ("float32", [1, 64, "n"]), "p": ("float32", [1, 64, 2])},
        {"w": ("float32", [64, 1, 3])},
    )


@plant("webgpu/causal-conv")
def _(bad: bool) -> Sketch:
    return conv(ndim=1, state_window=int(bad))


@plant("webgpu/channels-last")
def _(bad: bool) -> Sketch:
    return conv(ndim=1, channels_last=int(bad))


# The CPU provider


@plant("cpu/causal-conv")
def _(bad: bool) -> Sketch:
    return conv(ndim=1, activation="gelu" if bad else "silu")


@plant("cpu/half-precision")
def _(bad: bool) -> Sketch:
    return Sketch([op("Erf")], {"x": ("float16" if bad else "float32", [4])})


@plant("cpu/qmoe-accuracy-level")
def _(bad: bool) -> Sketch:
    return experts(accuracy_level=None if bad else 4)


@plant("cpu/qmoe-form")
def _(bad: bool) -> Sketch:
    return experts(swiglu_fusion=0 if bad else 1)


@plant("cpu/matmul-form")
def _(bad: bool) -> Sketch:
    return matmul(block=8 if bad else 32)


@plant("cpu/matmul-zero-points")
def _(bad: bool) -> Sketch:
    return matmul("x w s z" if bad else "x w s", accuracy_level=4)


# OpenVINO


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


# QNN


@plant("qnn/not-built")
def _(bad: bool) -> Sketch:
    return attention(tokens=1) if bad else Sketch([op("Sigmoid")])


@plant("qnn/float")
def _(bad: bool) -> Sketch:
    plain, quantized = [op("Sigmoid")], [op("DequantizeLinear", "x s", "d"), op("Sigmoid", "d")]
    return Sketch(
        plain if bad else quantized,
        {"x": ("float32" if bad else "uint8", [1, 8])},
        {"s": ("float32", [])},
    )


@plant("qnn/joined-mask")
def _(bad: bool) -> Sketch:
    mask = [op("Concat", "old new", "row", axis=3)] if bad else []
    nodes = [
        *mask,
        op("QuantizeLinear", "row s", "q"),
        op("DequantizeLinear", "q s", "d"),
        op("Add", "x d", "masked"),
        op("Softmax", "masked"),
    ]
    given = {"old": ("float32", [1, 1, 1, 48]), "new": ("float32", [1, 1, 1, 7])}
    whole = {"row": ("float32", [1, 1, 1, 55])}
    scores = {"x": ("float32", [1, 2, 7, 55])}
    return Sketch(nodes, scores | (given if bad else whole), {"s": ("float32", [])})
