"""Qualcomm's HTP, through ONNX Runtime's QNN provider."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from exporters.lint.graph import Graph, Node, Value
from exporters.lint.kernels import is_inlined, load_built, load_schemas
from exporters.lint.makers import find_maker, map_makers
from exporters.lint.rule import Fault, RuleSet, check_ids, rule
from lfm2_deploy.findings import Outcome

_FOLDER = "onnxruntime/core/providers/qnn/builder"
_BUILDERS = f"{_FOLDER}/op_builder_factory.cc, onnxruntime-qnn 2.0.0 (March 2026)"
_FLOATS = ("float32", "float64")
_MOVING = frozenset(["Cast", "QuantizeLinear", "DequantizeLinear"])


@rule(
    "qnn/not-built",
    Outcome.ELSEWHERE,
    advice="lower it to operators that are there",
    source=_BUILDERS,
)
def not_built(graph: Graph) -> Iterator[Fault]:
    """The provider has no builder for this operator: it falls to the CPU. GroupQueryAttention and
    SkipSimplifiedLayerNormalization were seen to, in the emulator of onnxruntime-qnn 2.7.0.
    An operator of the same name in another domain is another one."""
    for node in graph.live:
        if not _is_built(node) and not is_inlined(node):
            yield Fault("no builder of this operator", "an operator of the provider", node)


def _is_built(node: Node) -> bool:
    known = not node.domain or (node.domain, node.op) in load_schemas()
    return known and node.op in load_built()


@rule(
    "qnn/dynamic-shape",
    Outcome.ELSEWHERE,
    advice="export graphs of fixed shapes: one for a chunk of a prompt, one for a token",
    source=f"QnnModelWrapper::GetOnnxShape in {_FOLDER}/qnn_model_wrapper.cc, "
    "onnxruntime-qnn 2.0.0",
)
def dynamic_shape(graph: Graph) -> Iterator[Fault]:
    """A node whose inputs or outputs have a dimension without a number is left to the CPU, as
    was seen in the emulator of onnxruntime-qnn 2.7.0."""
    for node in graph.live:
        for value in (*node.inputs, *node.outputs):
            if _is_built(node) and value is not None and _is_dynamic(value):
                yield Fault("a dimension without a number", "fixed shapes", node)
                break


def _is_dynamic(value: Value) -> bool:
    return value.shape is not None and not value.is_static


@rule(
    "qnn/float",
    Outcome.REMARK,
    advice="quantize it (QuantizeLinear and DequantizeLinear around each node), or set "
    "enable_htp_fp16_precision together with soc_model",
    source="run in the emulator of onnxruntime-qnn 2.7.0: float16 needs both options",
)
def float_node(graph: Graph) -> Iterator[Fault]:
    """The HTP is made for integers. What is not between quantizing nodes is computed in float16
    there, more slowly, if it is taken at all."""
    made_by = {value.name: node for node in graph.live for value in node.outputs if value}
    for node in graph.live:
        floats = [value for value in node.inputs if value is not None and value.type in _FLOATS]
        plain = [value for value in floats if not _is_dequantized(value, made_by)]
        if _is_built(node) and node.op not in _MOVING and plain:
            yield Fault(f"{plain[0].type} that was not quantized", "quantized inputs", node)


@rule(
    "qnn/joined-mask",
    Outcome.WRONG,
    advice="give the mask as one row from the host, and add a constant for the causal part",
    source="seen in the emulator of QNN 2.51, SoC model 60: a history of 48 and 7 new tokens",
)
def joined_mask(graph: Graph) -> Iterator[Fault]:
    """Where activations are quantized, HTP's compiler mixes up what is masked if the mask that is
    added before a softmax was expanded, or joined of parts that do not fill 64 columns."""
    made_by = map_makers(graph)
    quantized = any(graph.find("QuantizeLinear"))
    for node in graph.find("Softmax"):
        total = find_maker(node.input(0), made_by)
        if not quantized or total is None or total.op != "Add":
            continue
        for maker in (find_maker(value, made_by) for value in total.inputs):
            if maker is not None and _mixes_up(maker):
                yield Fault(f"a mask made by {maker.op}", "one row from the host", node)


def _mixes_up(maker: Node) -> bool:
    if maker.op != "Concat":
        return maker.op == "Expand"
    parts = [value.shape for value in maker.inputs if value is not None and value.shape]
    axis = maker.integer("axis", 0)
    last = any(axis in (-1, len(shape) - 1) for shape in parts)
    return last and any(isinstance(dim := shape[-1], int) and dim % 64 for shape in parts)


@rule(
    "qnn/int4-zero-points",
    Outcome.WRONG,
    advice="give zero points of type int4, all 0",
    source="seen in the emulator of onnxruntime-qnn 2.7.0, QNN 2.51.0: right with them",
)
def int4_zero_points(graph: Graph) -> Iterator[Fault]:
    """Weights of 4 bits without zero points are taken for unsigned ones, although their type is
    signed."""
    for node in graph.live:
        weight = node.input(0)
        if node.op != "DequantizeLinear" or weight is None or weight.type != "int4":
            continue
        if weight.constant and node.input(2) is None:
            yield Fault("int4 weights, no zero points", "zero points of 0", node)


@rule(
    "qnn/second-factor",
    Outcome.WRONG,
    advice="quantize the second factor as int16",
    source=f"ProcessInputsForQnnMatMul in {_FOLDER}/opbuilder/matmul_op_builder.cc, "
    "onnxruntime-qnn 2.0.0; seen in the emulator of 2.7.0",
)
def second_factor(graph: Graph) -> Iterator[Fault]:
    """Of a product of two activations that are both unsigned 16-bit numbers, the second is made
    8 bits without a word. Constants are not."""
    made_by = map_makers(graph)
    for node in graph.find("MatMul"):
        first, second = (_find_quantized(node.input(index), made_by) for index in (0, 1))
        if _is_uint16(first) and _is_uint16(second):
            yield Fault("two activations of uint16", "the second as int16", node)


def _find_quantized(value: Value | None, made_by: Mapping[str, Node]) -> Value | None:
    """What a value was dequantized from."""
    maker = made_by.get(value.name) if value is not None else None
    return maker.input(0) if maker is not None and maker.op == "DequantizeLinear" else None


def _is_uint16(value: Value | None) -> bool:
    return value is not None and value.type == "uint16" and not value.constant


def _is_dequantized(value: Value, made_by: dict[str, Node]) -> bool:
    maker = made_by.get(value.name)
    return maker is not None and maker.op == "DequantizeLinear"


_RULES = (not_built, dynamic_shape, float_node, joined_mask, int4_zero_points, second_factor)
check_ids(_RULES)
QNN = RuleSet(
    "qnn",
    _RULES,
    open_questions=(
        "limits of each operator beside its name: QNN's own validation knows them, and runs in "
        "its emulator",
    ),
)
