"""MatMulNBits and RotaryEmbedding on DirectML."""

from __future__ import annotations

from collections.abc import Iterator

from exporters.lint.graph import Graph
from exporters.lint.rule import Fault, rule
from exporters.lint.rules.shared import list_given
from lfm2_deploy.findings import Outcome

_MATMUL = "Operators/DmlOperatorMatMulNBits.cpp, onnxruntime 1.30.0"
_ROTARY = "Operators/DmlOperatorRotaryEmbedding.cpp, onnxruntime 1.30.0"


@rule(
    "directml/matmul-blocks",
    Outcome.ELSEWHERE,
    advice="store 4 or 8 bits in blocks that divide the width, or pad the width",
    source=f"QueryMatMulNBits in {_MATMUL}",
)
def matmul_blocks(graph: Graph) -> Iterator[Fault]:
    """MatMulNBits with other widths than 4 or 8 bits, or whose last block is not full, is left to
    the CPU."""
    for node in graph.find_fused("MatMulNBits"):
        bits = node.integer("bits", 4)
        k, block = node.integer("K", 0), max(node.integer("block_size", 1), 1)
        if bits not in (4, 8):
            yield Fault(f"bits={bits}", "4 or 8", node)
        elif k % block:
            yield Fault(f"K={k}, block_size={block}", "a block_size that divides K", node)


@rule(
    "directml/matmul-block-size",
    Outcome.WRONG,
    advice="store blocks of 16, 32, 64 or 128",
    source="the operator's definition in core/graph/contrib_ops/contrib_defs.cc and "
    f"{_MATMUL}; read, not run",
)
def matmul_block_size(graph: Graph) -> Iterator[Fault]:
    """MatMulNBits is defined for blocks of a power of two from 16 on. DirectML's code does not
    look, so nothing refuses others, and what comes of them is not defined; the CPU refuses to
    load them."""
    for node in graph.find_fused("MatMulNBits"):
        block = node.integer("block_size", 32)
        if block < 16 or block & (block - 1):
            yield Fault(f"block_size={block}", "a power of two, 16 or more", node)


@rule(
    "directml/matmul-inputs",
    Outcome.REFUSED,
    advice="add the bias with Add, and order rows before quantizing instead of by g_idx",
    source=_MATMUL,
)
def matmul_inputs(graph: Graph) -> Iterator[Fault]:
    """MatMulNBits takes no g_idx and no bias, and at least two dimensions."""
    for node in graph.find_fused("MatMulNBits"):
        extra = list_given(node, {4: "g_idx", 5: "bias"})
        data = node.input(0)
        if extra:
            yield Fault(f"input {' and '.join(extra)}", "neither g_idx nor bias", node)
        elif data is not None and data.rank is not None and data.rank < 2:
            yield Fault(f"an input of {data.rank} dimension", "2 or more", node)


@rule(
    "directml/matmul-float-zero-points",
    Outcome.WRONG,
    advice="pack zero points as uint8",
    source=_MATMUL,
)
def matmul_float_zero_points(graph: Graph) -> Iterator[Fault]:
    """Zero points are read as packed integers, whatever their type: floating-point ones would be
    taken for others. Their type is not part of what the kernel is registered for, so nothing
    refuses them."""
    for node in graph.find_fused("MatMulNBits"):
        zero_points = node.input(3)
        if zero_points is not None and zero_points.type not in (None, "uint8"):
            yield Fault(f"zero_points of {zero_points.type}", "uint8, packed", node)


@rule(
    "directml/matmul-odd-zero-points",
    Outcome.WRONG,
    advice="choose blocks so that each row has an even number of them, or store 4 bits",
    source=f"the strides of zero points in {_MATMUL}",
)
def matmul_odd_zero_points(graph: Graph) -> Iterator[Fault]:
    """Rows of zero points are taken to begin at even places, which is so for 4 bits, two to a
    byte, and not for 8: with an odd number of blocks to a row, the zero points of all rows but
    the first are read from the wrong place."""
    for node in graph.find_fused("MatMulNBits"):
        k, block = node.integer("K", 0), max(node.integer("block_size", 1), 1)
        odd = -(-k // block) % 2 == 1
        if node.integer("bits", 4) == 8 and node.input(3) is not None and odd:
            yield Fault(f"{-(-k // block)} blocks a row, 8 bits", "an even number", node)


@rule(
    "directml/matmul-default-zero-point",
    Outcome.REMARK,
    advice="give zero_points of 128",
    source=f"{_MATMUL}: without zero points it dequantizes by the scale alone; upstream's tests "
    "(matmul_4bits_test.cc) run that on DirectML for 4 bits only",
)
def matmul_default_zero_point(graph: Graph) -> Iterator[Fault]:
    """Without zero points, 8 bits should mean a zero point of 128. Nobody tests that on
    DirectML, and the code does not spell it out."""
    for node in graph.find_fused("MatMulNBits"):
        if node.integer("bits", 4) == 8 and node.input(3) is None:
            yield Fault("8 bits, no zero_points", "zero_points", node)


@rule(
    "directml/rotary-shape",
    Outcome.REFUSED,
    advice="give positions as [batch, tokens], data as [batch, tokens, width] or "
    "[batch, heads, tokens, head width]",
    source=_ROTARY,
)
def rotary_shape(graph: Graph) -> Iterator[Fault]:
    """RotaryEmbedding takes data of three or four dimensions, and positions of one or two."""
    for node in graph.find_fused("RotaryEmbedding"):
        data, positions = node.input(0), node.input(1)
        if data is not None and data.rank not in (None, 3, 4):
            yield Fault(f"data of {data.rank} dimensions", "3 or 4", node)
        if positions is not None and positions.rank not in (None, 1, 2):
            yield Fault(f"positions of {positions.rank} dimensions", "1 or 2", node)


@rule(
    "directml/rotary-scale",
    Outcome.WRONG,
    advice="multiply the caches by it",
    source=_ROTARY,
)
def rotary_scale(graph: Graph) -> Iterator[Fault]:
    """RotaryEmbedding's scale is not read."""
    for node in graph.find_fused("RotaryEmbedding"):
        scale = node.attributes.get("scale", 1.0)
        if scale != 1.0:
            yield Fault(f"scale={scale}", "1", node)


MATMUL_RULES = (
    matmul_blocks,
    matmul_block_size,
    matmul_inputs,
    matmul_float_zero_points,
    matmul_odd_zero_points,
    matmul_default_zero_point,
    rotary_shape,
    rotary_scale,
)
