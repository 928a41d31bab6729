"""Faults of ONNX Runtime's other providers: WebGPU, CPU, QNN."""

from __future__ import annotations

from .building import Sketch, op
from .plants import QK_NORM, attention, conv, experts, matmul, plant


@plant("webgpu/int64")
def _(bad: bool) -> Sketch:
    return Sketch([op("Add", "x x")], {"x": ("int64" if bad else "int32", [1])})


@plant("webgpu/qmoe-inputs")
def _(bad: bool) -> Sketch:
    return experts("x r w s - v t - - - - - - - r" if bad else "x r w s - v t")


@plant("webgpu/qmoe-bits")
def _(bad: bool) -> Sketch:
    return experts(expert_weight_bits=2 if bad else 4)


@plant("webgpu/qmoe-several-tokens")
def _(bad: bool) -> Sketch:
    return experts(tokens="n" if bad else 1)


@plant("webgpu/attention-norms")
def _(bad: bool) -> Sketch:
    return attention(QK_NORM if bad else f"{QK_NORM} norm", do_rotary=1)


@plant("webgpu/attention-softcap")
def _(bad: bool) -> Sketch:
    return attention(softcap=0.1 if bad else 0.0)


@plant("webgpu/attention-causal")
def _(bad: bool) -> Sketch:
    return attention(causal=int(not bad))


@plant("webgpu/attention-cache-type", "directml/attention-cache-type")
def _(bad: bool) -> Sketch:
    return attention(cache="float16" if bad else "float32")


@plant("webgpu/causal-conv")
def _(bad: bool) -> Sketch:
    return conv(ndim=1, state_window=int(bad))


@plant("webgpu/channels-last")
def _(bad: bool) -> Sketch:
    return conv(ndim=1, channels_last=int(bad))


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


@plant("cpu/matmul-form", "directml/matmul-block-size")
def _(bad: bool) -> Sketch:
    return matmul(block=8 if bad else 32)


@plant("cpu/matmul-zero-points")
def _(bad: bool) -> Sketch:
    return matmul("x w s z" if bad else "x w s", accuracy_level=4)


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


@plant("qnn/int4-zero-points")
def _(bad: bool) -> Sketch:
    nodes = [op("DequantizeLinear", "w s" if bad else "w s z", "d"), op("MatMul", "x d")]
    numbers = {"w": ("int4", [8, 8]), "s": ("float32", []), "z": ("int4", [])}
    return Sketch(nodes, {"x": ("float32", [1, 8])}, numbers)


def product(second: str, constant: bool = False) -> Sketch:
    """A product of two quantized matrices, the first of uint16."""
    nodes = [
        op("DequantizeLinear", "a s", "x"),
        op("DequantizeLinear", "b s", "w"),
        op("MatMul", "x w"),
    ]
    matrix = {"b": (second, [8, 8])}
    given = {"a": ("uint16", [1, 8])} | ({} if constant else matrix)
    return Sketch(nodes, given, {"s": ("float32", [])} | (matrix if constant else {}))


@plant("qnn/second-factor")
def _(bad: bool) -> Sketch:
    return product("uint16" if bad else "int16")
