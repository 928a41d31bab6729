"""ONNX Runtime's CPU provider. Paths are below onnxruntime/, version 1.32.0 unless said."""

from __future__ import annotations

from collections.abc import Iterator

from exporters.lint.graph import Graph
from exporters.lint.kernels import is_inlined, load_table
from exporters.lint.rule import Fault, Rule, RuleSet, check_ids, rule
from exporters.lint.rules.shared import find_misfits, list_given, make_kernel_rules
from lfm2_deploy.findings import Outcome

_TABLE = "kernels listed by onnxruntime 1.32.0"


def _except_halves(original: Rule) -> Rule:
    """The rule of types, less what ONNX Runtime mends by itself."""

    @rule(original.id, original.outcome, advice=original.advice, source=original.source)
    def types(graph: Graph) -> Iterator[Fault]:
        """A kernel takes the types of elements that it was registered for."""
        for fault in original.check(graph):
            if not fault.seen.endswith(" float16"):
                yield fault

    return types


@rule(
    "cpu/half-precision",
    Outcome.REMARK,
    advice="export float32, or int8 or int4, which are also faster here",
    source="core/optimizer/insert_cast_transformer.cc, onnxruntime 1.30.0",
)
def half_precision(graph: Graph) -> Iterator[Fault]:
    """Where the CPU has no kernel for float16, ONNX Runtime casts to float32 and back around
    the node."""
    for node, seen, expected in find_misfits(graph, load_table("cpu")):
        if seen.endswith(" float16") and not is_inlined(node):
            yield Fault(seen, expected, node)


@rule(
    "cpu/qmoe-accuracy-level",
    Outcome.REMARK,
    advice="set accuracy_level=4",
    source="measured with onnxruntime 1.32.0 on 2 cores with AVX2: 198 of 264 ms a token without "
    "it, 40 of 80 ms with it (the shape of LFM2-8B-A1B)",
)
def qmoe_accuracy_level(graph: Graph) -> Iterator[Fault]:
    """Without accuracy_level, QMoE computes in float32, five times as long as with 8-bit
    activations. 0 is slower still."""
    for node in graph.find_fused("QMoE"):
        level = node.attributes.get("accuracy_level")
        if level != 4:
            yield Fault(f"accuracy_level={level}" if level is not None else "unset", "4", node)


@rule(
    "cpu/qmoe-form",
    Outcome.REFUSED,
    advice="join w1 and w3, their rows in turn, and set swiglu_fusion=1",
    source="contrib_ops/cpu/moe/moe_quantization_cpu.cc, onnxruntime 1.30.0",
)
def qmoe_form(graph: Graph) -> Iterator[Fault]:
    """QMoE wants the two halves of SwiGLU joined row by row, and no third matrix."""
    for node in graph.find_fused("QMoE"):
        fusion = node.integer("swiglu_fusion", 0)
        if node.attributes.get("activation_type", "relu") == "swiglu" and fusion != 1:
            yield Fault(f"swiglu_fusion={fusion}", "1", node)
        if node.input(8) is not None:
            yield Fault("input fc3_experts_weights", "left out", node)


@rule(
    "cpu/attention-norms",
    Outcome.REFUSED,
    advice="normalize query and key with SimplifiedLayerNormalization before it",
    source="contrib_ops/cpu/bert/group_query_attention.cc, onnxruntime 1.30.0",
)
def attention_norms(graph: Graph) -> Iterator[Fault]:
    """GroupQueryAttention normalizes query and key on CUDA and WebGPU only."""
    for node in graph.find_fused("GroupQueryAttention"):
        for name in list_given(node, {14: "q_norm_weight", 15: "k_norm_weight"}):
            yield Fault(f"input {name}", "left out", node)


@rule(
    "cpu/causal-conv",
    Outcome.REFUSED,
    advice="leave ndim at 1 and state_window at 0; apply other activations after it",
    source="contrib_ops/cpu/bert/causal_conv_with_state.cc, onnxruntime 1.30.0",
)
def causal_conv(graph: Graph) -> Iterator[Fault]:
    """CausalConvWithState works over one dimension, with SiLU or nothing after it, and keeps no
    window of states."""
    allowed = {"ndim": (1,), "state_window": (0,), "activation": ("none", "silu", "swish")}
    for node in graph.find_fused("CausalConvWithState"):
        for name, values in allowed.items():
            value = node.attributes.get(name, values[0])
            if value not in values:
                yield Fault(f"{name}={value}", " or ".join(map(str, values)), node)


@rule(
    "cpu/matmul-form",
    Outcome.REFUSED,
    advice="store 2, 4 or 8 bits in blocks of 16, 32, 64 or 128",
    source="contrib_ops/cpu/quantization/matmul_nbits.cc, as onnxruntime 1.32.0 says when it loads",
)
def matmul_form(graph: Graph) -> Iterator[Fault]:
    """MatMulNBits takes 2, 4 or 8 bits, in blocks of a power of two from 16 on."""
    for node in graph.find_fused("MatMulNBits"):
        bits, block = node.integer("bits", 4), node.integer("block_size", 32)
        if bits not in (2, 4, 8):
            yield Fault(f"bits={bits}", "2, 4 or 8", node)
        if block < 16 or block & (block - 1):
            yield Fault(f"block_size={block}", "a power of two, 16 or more", node)


@rule(
    "cpu/matmul-zero-points",
    Outcome.WRONG,
    advice="quantize symmetrically (no zero_points), or leave accuracy_level unset",
    source="microsoft/onnxruntime#29853, open in 2026; not reproduced here, for want of such a "
    "processor",
)
def matmul_zero_points(graph: Graph) -> Iterator[Fault]:
    """On processors with AVX2 and without AVX-512, MatMulNBits of 4 bits with zero points and
    8-bit activations is reported to be wrong by half for single tokens."""
    for node in graph.find_fused("MatMulNBits"):
        level = node.integer("accuracy_level", 0)
        if node.integer("bits", 4) == 4 and level == 4 and node.input(3) is not None:
            yield Fault("4 bits, zero_points, accuracy_level=4", "two of the three", node)


_not_registered, _version, _types = make_kernel_rules("cpu", "cpu", Outcome.REFUSED, _TABLE)
_RULES = (
    _not_registered,
    _version,
    _except_halves(_types),
    half_precision,
    qmoe_accuracy_level,
    qmoe_form,
    attention_norms,
    causal_conv,
    matmul_form,
    matmul_zero_points,
)
check_ids(_RULES)
CPU = RuleSet("cpu", _RULES)
