"""DirectML: ONNX Runtime's DirectML provider, of onnxruntime-windowsml and onnxruntime-directml.

Works from the table of kernels in the wheel, and from what the kernels' code says beside it.
Paths are below onnxruntime/core/providers/dml/DmlExecutionProvider/src/.
"""

from __future__ import annotations

from collections.abc import Iterator

from exporters.lint.graph import Graph, Node
from exporters.lint.kernels import load_table
from exporters.lint.rule import Fault, RuleSet, check_ids, rule
from exporters.lint.rules.directml_attention import ATTENTION_RULES
from exporters.lint.rules.directml_matmul import MATMUL_RULES
from exporters.lint.rules.shared import find_host_nodes, make_host_rule, make_kernel_rules
from lfm2_deploy.findings import Outcome

_TABLE = "OperatorRegistration.cpp, read from the wheel of onnxruntime-windowsml 1.30.0"
_SKIP_NORM = "Operators/DmlOperatorSkipLayerNormalization.cpp, onnxruntime 1.30.0"
_NORMS = ("LayerNormalization", "SimplifiedLayerNormalization")
_SKIP_NORMS = ("SkipLayerNormalization", "SkipSimplifiedLayerNormalization")


def list_cpu_inputs(node: Node) -> tuple[int, ...]:
    """Inputs that the kernel of a node reads on the CPU."""
    kernel = load_table("directml").choose(node)
    return kernel.cpu_inputs if kernel else ()


@rule(
    "directml/norm-outputs",
    Outcome.ELSEWHERE,
    advice="leave the statistics out: nothing needs them once a model is trained",
    source=f"QueryLayerNormalization; QuerySkipLayerNormalization in {_SKIP_NORM}",
)
def norm_outputs(graph: Graph) -> Iterator[Fault]:
    """Normalizations give their result, and with a skip their sum, but no mean and no variance:
    asked for those, DirectML leaves the node to the CPU."""
    for node in graph.live:
        # Of plain norms the outputs are counted, empty ones too.
        counted = node.op in _NORMS and len(node.outputs) > 1
        given = node.op in _SKIP_NORMS and any(value is not None for value in node.outputs[1:3])
        if counted or given:
            yield Fault("outputs of mean or variance", "the result alone", node)


@rule(
    "directml/skip-norm-shape",
    Outcome.REFUSED,
    advice="reshape to [batch, tokens, width] before it, and do not broadcast the skip",
    source=_SKIP_NORM,
)
def skip_norm_shape(graph: Graph) -> Iterator[Fault]:
    """A normalization with a skip takes two or three dimensions, and describes the skip with the
    input's shape."""
    for node in graph.live:
        data, skip = node.input(0), node.input(1)
        if node.op not in _SKIP_NORMS or data is None or data.rank is None:
            continue
        if data.rank not in (2, 3):
            yield Fault(f"an input of {data.rank} dimensions", "2 or 3", node)
        elif skip is not None and skip.rank not in (None, data.rank):
            yield Fault(f"a skip of {skip.rank} dimensions", f"{data.rank}, as the input", node)


@rule(
    "directml/scatter-reduction",
    Outcome.ELSEWHERE,
    advice="scatter without a reduction, and reduce apart",
    source="QueryScatter in Operators/DmlOperatorScatter.cpp, onnxruntime 1.30.0",
)
def scatter_reduction(graph: Graph) -> Iterator[Fault]:
    """Scattering with a reduction is left to the CPU."""
    for node in (*graph.find("ScatterElements"), *graph.find("ScatterND")):
        reduction = node.attributes.get("reduction", "none")
        if reduction != "none":
            yield Fault(f"reduction={reduction}", "reduction=none", node)


@rule(
    "directml/changing-operand",
    Outcome.REMARK,
    advice="make it an initializer where it is always the same",
    source="MLOperatorAuthorImpl.cpp (requiredConstantCpuInputs) and GraphPartitioner.cpp, "
    "onnxruntime 1.30.0",
)
def changing_operand(graph: Graph) -> Iterator[Fault]:
    """Shapes, slice limits, k of TopK and the like are read on the CPU when DirectML compiles a
    node. One that is no initializer keeps the node out of fused graphs, and each new value
    compiles the node again. Where the GPU computed it, every call waits for a copy."""
    on_host = {
        node.name for node in find_host_nodes(graph, load_table("directml"), list_cpu_inputs)
    }
    for node in graph.live:
        if node.op == "GroupQueryAttention" or node.name in on_host:
            continue
        given = [node.input(index) for index in list_cpu_inputs(node)]
        if any(value is not None and not value.constant for value in given):
            yield Fault("an operand known only at run time", "an initializer", node)


_RULES = (
    *make_kernel_rules("directml", "directml", Outcome.ELSEWHERE, _TABLE),
    norm_outputs,
    skip_norm_shape,
    scatter_reduction,
    *MATMUL_RULES,
    *ATTENTION_RULES,
    changing_operand,
    make_host_rule("directml", "directml", list_cpu_inputs),
)
check_ids(_RULES)
DIRECTML = RuleSet(
    "directml",
    _RULES,
    open_questions=(
        "whether past and present keys and values are bound to one buffer: GroupQueryAttention "
        "keeps its history there and nowhere else",
        "which types the device has: ONNX Runtime leaves nodes with 64-bit integers or float16 to "
        "the CPU where it lacks them",
    ),
)
