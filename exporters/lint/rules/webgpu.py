"""WebGPU: ONNX Runtime's WebGPU provider, of onnxruntime-ep-webgpu and onnxruntime-webgpu.

Works from the kernels that the plugin itself lists, and from what their code says beside it.
Paths are below onnxruntime/.
"""

from __future__ import annotations

from collections.abc import Iterator

from exporters.lint.graph import Graph, Node
from exporters.lint.kernels import load_table
from exporters.lint.rule import Fault, Rule, RuleSet, check_ids, rule
from exporters.lint.rules.shared import (
    find_misfits,
    list_given,
    make_host_rule,
    make_kernel_rules,
)
from exporters.lint.rules.webgpu_attention import ATTENTION_RULES
from lfm2_deploy.findings import Outcome

_TABLE = "kernels listed by onnxruntime-ep-webgpu 0.4.0"
_VERSION = "onnxruntime 1.30.0; executed with onnxruntime-ep-webgpu 0.4.0"
# Operators that have kernels for int64 when the option is on.
_WITH_INT64 = frozenset(
    {
        *("Add", "Sub", "Mul", "Div", "Max", "Min", "Equal", "Greater", "Less", "GreaterOrEqual"),
        *("LessOrEqual", "Cast", "Clip", "Range", "Unsqueeze", "Expand", "Reshape", "Concat"),
        *("Gather", "Where", "Tile", "ReduceSum"),
    }
)
# Operators whose further inputs a kernel reads on the CPU; of Range, all.
_ON_CPU = frozenset(
    {
        *("Reshape", "Expand", "Tile", "Slice", "Squeeze", "Unsqueeze", "TopK", "Split", "Pad"),
        *("Resize", "Trilu", "CumSum", "Clip"),
    }
)


def list_cpu_inputs(node: Node) -> tuple[int, ...]:
    """Inputs that the kernel of a node reads on the CPU."""
    if node.op == "Range":
        return (0, 1, 2)
    return tuple(range(1, len(node.inputs))) if node.op in _ON_CPU else ()


def _is_int64_alone(node: Node, seen: str) -> bool:
    return node.op in _WITH_INT64 and not node.domain and seen.endswith("int64")


def _except_int64(original: Rule) -> Rule:
    """The rule of types, less what the rule of int64 says better."""

    @rule(original.id, original.outcome, advice=original.advice, source=original.source)
    def types(graph: Graph) -> Iterator[Fault]:
        """A kernel takes the types of elements that it was registered for."""
        for fault in original.check(graph):
            if fault.node is None or not _is_int64_alone(fault.node, fault.seen):
                yield fault

    return types


@rule(
    "webgpu/int64",
    Outcome.REMARK,
    advice="set the provider option enableInt64=1 (graph capture sets it), or use int32",
    source=f"RegisterKernels in core/providers/webgpu/webgpu_execution_provider.cc, {_VERSION}",
)
def int64(graph: Graph) -> Iterator[Fault]:
    """Kernels for 64-bit integers are there only if an option asks for them; without it these
    nodes run on the CPU. They compute with the lower 32 bits."""
    for node, seen, expected in find_misfits(graph, load_table("webgpu")):
        if _is_int64_alone(node, seen):
            yield Fault(seen, expected, node)


@rule(
    "webgpu/qmoe-inputs",
    Outcome.REFUSED,
    advice="feed the logarithm of the routing weights as router_probs, join w1 and w3, and "
    "quantize symmetrically",
    source=f"contrib_ops/webgpu/moe/qmoe.cc, {_VERSION}",
)
def qmoe_inputs(graph: Graph) -> Iterator[Fault]:
    """QMoE fails when it is run with routing weights of their own, zero points, or a third
    matrix."""
    names = {8: "fc3_experts_weights", 11: "fc1_zero_points", 12: "fc2_zero_points"}
    names |= {13: "fc3_zero_points", 14: "router_weights"}
    for node in graph.find_fused("QMoE"):
        for name in list_given(node, names):
            yield Fault(f"input {name}", "left out", node)


@rule(
    "webgpu/qmoe-bits",
    Outcome.REFUSED,
    advice="store experts in 4 or 8 bits",
    source=f"contrib_ops/webgpu/moe/qmoe.h, {_VERSION}",
)
def qmoe_bits(graph: Graph) -> Iterator[Fault]:
    """QMoE takes experts of 4 or 8 bits."""
    for node in graph.find_fused("QMoE"):
        bits = node.integer("expert_weight_bits", 4)
        if bits not in (4, 8):
            yield Fault(f"expert_weight_bits={bits}", "4 or 8", node)


@rule(
    "webgpu/matmul",
    Outcome.REFUSED,
    advice="order rows before quantizing instead of by g_idx; store 2, 4 or 8 bits",
    source=f"contrib_ops/webgpu/quantization/matmul_nbits.cc and .h, {_VERSION}",
)
def matmul(graph: Graph) -> Iterator[Fault]:
    """MatMulNBits takes 2, 4 or 8 bits and no g_idx."""
    for node in graph.find_fused("MatMulNBits"):
        bits = node.integer("bits", 4)
        if node.input(4) is not None:
            yield Fault("input g_idx", "left out", node)
        if bits not in (2, 4, 8):
            yield Fault(f"bits={bits}", "2, 4 or 8", node)


@rule(
    "webgpu/causal-conv",
    Outcome.REFUSED,
    advice="leave state_window at 0 and ndim at 1",
    source=f"contrib_ops/webgpu/bert/causal_conv_with_state.cc, {_VERSION}",
)
def causal_conv(graph: Graph) -> Iterator[Fault]:
    """CausalConvWithState works over one dimension, and keeps no window of states."""
    for node in graph.find_fused("CausalConvWithState"):
        if node.integer("ndim", 1) != 1:
            yield Fault(f"ndim={node.attributes['ndim']}", "1", node)
        if node.integer("state_window", 0) != 0:
            yield Fault(f"state_window={node.attributes['state_window']}", "0", node)


@rule(
    "webgpu/qmoe-several-tokens",
    Outcome.REMARK,
    advice="give it one token a call; this package's runtime does so",
    source="contrib_ops/webgpu/moe/gate.wgsl.template, onnxruntime 1.32; seen with "
    "onnxruntime-ep-webgpu 0.4.0 on lavapipe: other logits from run to run",
)
def qmoe_several_tokens(graph: Graph) -> Iterator[Fault]:
    """With several tokens QMoE clears its experts' counts while they may be counted already, and
    loses tokens, silently. A graph that takes any number is right for single ones: whoever calls it
    must know."""
    for node in graph.find_fused("QMoE"):
        x = node.input(0)
        shape = None if x is None else x.shape
        if shape is None or any(size != 1 for size in shape[:-1]):
            yield Fault("several tokens in a call", "one, or a caller who knows", node)


@rule(
    "webgpu/channels-last",
    Outcome.REMARK,
    advice="run it through the plugin, or keep channels first",
    source="loaded with onnxruntime-webgpu 1.27.0: 'Unrecognized attribute: channels_last'",
)
def channels_last(graph: Graph) -> Iterator[Fault]:
    """The plugin's CausalConvWithState takes channels last; the older wheel onnxruntime-webgpu
    1.27.0 refuses a graph that says so."""
    for node in graph.find_fused("CausalConvWithState"):
        if node.integer("channels_last", 0):
            yield Fault("channels_last=1", "0, for that wheel", node)


_not_registered, _version, _types = make_kernel_rules("webgpu", "webgpu", Outcome.ELSEWHERE, _TABLE)
_RULES = (
    _not_registered,
    _version,
    _except_int64(_types),
    int64,
    qmoe_inputs,
    qmoe_bits,
    qmoe_several_tokens,
    matmul,
    *ATTENTION_RULES,
    causal_conv,
    channels_last,
    make_host_rule("webgpu", "webgpu", list_cpu_inputs),
)
check_ids(_RULES)
WEBGPU = RuleSet(
    "webgpu",
    _RULES,
    open_questions=(
        "onnxruntime-webgpu 1.27.0, which is older: kernels are those of the plugin 0.4.0",
        "whether the adapter has float16 (shader-f16): without it nodes of float16 fail",
        "flash attention on adapters with small subgroups: wrong for several tokens at once where "
        "they are 4 and 8 wide (seen on lavapipe; this package's runtime tries it at load)",
        "SwiftShader as an adapter: it computes QMoE wrongly (seen with onnxruntime-webgpu 1.27.0)",
    ),
)
