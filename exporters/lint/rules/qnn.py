"""Qualcomm's HTP, through ONNX Runtime's QNN provider."""

from __future__ import annotations

from collections.abc import Iterator

from exporters.lint.graph import Graph, Node, Value
from exporters.lint.kernels import is_inlined, load_built
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
    SkipSimplifiedLayerNormalization were seen to, in the emulator of onnxruntime-qnn 2.7.0."""
    for node in graph.live:
        if node.op not in load_built() and not is_inlined(node):
            yield Fault("no builder of this operator", "an operator of the provider", node)


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
            if node.op in load_built() and value is not None and _is_dynamic(value):
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
        if node.op in load_built() - _MOVING and plain:
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


def _is_dequantized(value: Value, made_by: dict[str, Node]) -> bool:
    maker = made_by.get(value.name)
    return maker is not None and maker.op == "DequantizeLinear"


_RULES = (not_built, dynamic_shape, float_node, joined_mask)
check_ids(_RULES)
QNN = RuleSet(
    "qnn",
    _RULES,
    open_questions=(
        "limits of each operator beside its name: QNN's own validation knows them, and runs in "
        "its emulator",
    ),
)
