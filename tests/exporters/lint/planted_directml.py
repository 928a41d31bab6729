"""Faults of DirectML, and those that any provider of ONNX Runtime may have."""

from __future__ import annotations

from .building import Sketch, ints, op
from .plants import QK_NORM, attention, matmul, plant


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
