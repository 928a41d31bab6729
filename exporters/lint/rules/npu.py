"""Intel NPUs: graphs of fixed shapes for the compiler, and stateful IRs for NPUW."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping

from exporters.lint.graph import Graph, Node
from exporters.lint.makers import find_maker, map_makers, trace
from exporters.lint.rule import Fault, RuleSet, check_ids, rule
from exporters.lint.rules.openvino import make_genai_rule, make_import_rule
from lfm2_deploy.findings import Outcome

_COMPILED = "compiled with Intel's NPU compiler 8.4 of OpenVINO 2026.4.1"
_NPUW = "run through NPUW of OpenVINO 2026.4.1, on the CPU device"
_STATES = re.compile(
    r"past_key_values\.\d+\.(key|value)present\.\d+\.(key|value)"
    r"|cache_params\.past\.(key|value|conv)\.\d+cache_params\.present\.(key|value|conv)\.\d+"
)
_SMALL_INTEGERS = ("int4", "uint4", "int8", "uint8")


@rule(
    "npu/dynamic-shape",
    Outcome.REFUSED,
    advice="fix the shapes: one graph for a chunk of a prompt, one for a token",
    source=f"{_COMPILED}: it compiles static shapes alone",
)
def dynamic_shape(graph: Graph) -> Iterator[Fault]:
    """The compiler takes graphs whose inputs have numbers for all dimensions. A stateful IR is
    excepted: NPUW makes static graphs of it."""
    dynamic = [one for one in graph.inputs if one.shape is not None and not one.is_static]
    if dynamic and not graph.names_of_states:
        shape = ", ".join(str(dim or "?") for dim in dynamic[0].shape or ())
        more = f" and {len(dynamic) - 1} more inputs" if len(dynamic) > 1 else ""
        yield Fault(f"{dynamic[0].name} [{shape}]{more}", "numbers for all dimensions")


@rule(
    "npu/control-flow",
    Outcome.REFUSED,
    advice="let the host decide, and compile the branches as graphs of their own",
    source=f"{_COMPILED}: an If of one node is refused, and so is a Loop unless its number of "
    "rounds is a constant",
)
def control_flow(graph: Graph) -> Iterator[Fault]:
    """The compiler takes no branches, and loops only with a constant number of rounds."""
    for node in graph.nodes:
        rounds = node.input(0)
        if node.op == "If":
            yield Fault("branches", "none", node)
        elif node.op == "Loop" and (rounds is None or not rounds.constant):
            yield Fault("a number of rounds known only at run time", "a constant", node)


@rule(
    "npu/gathered-experts",
    Outcome.REMARK,
    advice="let the host choose, and compile one expert as a graph of its own",
    source=f"{_COMPILED}: estimated 106 ms for 4 of 64 experts in int4, and 0.3 ms for one whose "
    "weights are constants",
)
def gathered_experts(graph: Graph) -> Iterator[Fault]:
    """Picking experts out of stacked weights inside the graph takes hundreds of times as long as
    multiplying them."""
    made_by = map_makers(graph)
    for node in graph.nodes:
        data = trace(node.input(0), made_by) if node.op == "Gather" else None
        if data is not None and data.constant and (data.rank or 0) >= 3:
            yield Fault(f"a Gather from {data.rank}-dimensional constants", "constants", node)


@rule(
    "npu/weights-as-inputs",
    Outcome.REMARK,
    advice="compile each set of weights into a graph of its own",
    source=f"{_COMPILED}: estimated 6.6 ms for four experts with int4 weights as inputs",
)
def weights_as_inputs(graph: Graph) -> Iterator[Fault]:
    """Quantized weights that the caller gives are unpacked slowly; those inside the graph are
    not."""
    for value in graph.inputs:
        if value.type in _SMALL_INTEGERS and (value.rank or 0) >= 2:
            yield Fault(f"input {value.name} of {value.type}", "a constant")


@rule(
    "npu/grouped-weights",
    Outcome.REMARK,
    advice="quantize with one scale a row",
    source=f"{_COMPILED}: decoding of LFM2-350M's first three layers is estimated to take 4.2 ms "
    "with groups of 128 and 2.0 ms with one scale a row",
)
def grouped_weights(graph: Graph) -> Iterator[Fault]:
    """Weights with several scales a row take twice as long as those with one."""
    for node in graph.find("DequantizeLinear"):
        if node.integer("block_size", 0):
            yield Fault(f"block_size={node.integer('block_size', 0)}", "one scale a row", node)


@rule(
    "npu/zero-points",
    Outcome.REMARK,
    advice="quantize symmetrically",
    source="NPUW takes symmetric weights alone; compiled with Intel's NPU compiler 8.4, "
    "optimum-intel's asymmetric groups decode LFM2-350M in 20.5 ms and symmetric rows in 14.8 ms "
    "(estimates)",
)
def zero_points(graph: Graph) -> Iterator[Fault]:
    """Weights with zero points are slower, and NPUW refuses to take them apart."""
    for node in graph.find("DequantizeLinear"):
        point = node.input(2)
        if point is not None and (point.content is None or any(point.content)):
            yield Fault("a zero point", "none, or 0", node)


@rule(
    "npu/state-names",
    Outcome.REFUSED,
    advice="call them cache_params.past.conv.Ncache_params.present.conv.N and so on",
    source=_NPUW,
)
def state_names(graph: Graph) -> Iterator[Fault]:
    """NPUW finds states by the names of variables."""
    for name in graph.names_of_states:
        if not _STATES.fullmatch(name):
            yield Fault(
                f"variable {name}", "past_key_values.N.keypresent.N.key or cache_params.past. ..."
            )


@rule(
    "npu/odd-weights",
    Outcome.REFUSED,
    advice="keep such a matrix in 8 bits",
    source=_NPUW,
)
def odd_weights(graph: Graph) -> Iterator[Fault]:
    """NPUW unpacks 4-bit weights in pieces of 64."""
    for value in graph.constants:
        dims = [dim for dim in value.shape or () if isinstance(dim, int)]
        packed = value.type in ("int4", "uint4") and len(dims) >= 2
        if graph.names_of_states and packed and any(dim % 64 for dim in dims[-2:]):
            yield Fault(f"{value.type} weights {dims}", "multiples of 64")


@rule(
    "npu/conv-mask",
    Outcome.WRONG,
    advice="take the mask's last columns (mask[:, -s:]), and continue a state right before the "
    "first real token",
    source=f"{_NPUW}: logits off by 30, of a standard deviation of 7.9, for a prompt of 40 tokens "
    "in chunks of 64",
)
def conv_mask(graph: Graph) -> Iterator[Fault]:
    """A short convolution is masked with the first columns of attention_mask. When a prompt
    comes in chunks, the mask covers earlier ones too, and its first columns are not this
    chunk's: padding reaches the state, or tokens are dropped."""
    made_by = map_makers(graph)
    masks = {value.name for value in graph.inputs if value.name == "attention_mask"}
    for node in graph.live:
        if node.op not in ("Mul", "Multiply"):
            continue
        for value in node.inputs:
            maker = find_maker(value, made_by)
            if maker is not None and _takes_first_columns(maker, masks, made_by):
                yield Fault("multiplied by attention_mask[:, :s]", "attention_mask[:, -s:]", node)


def _takes_first_columns(node: Node, masks: set[str], made_by: Mapping[str, Node]) -> bool:
    start, end = node.input(1), node.input(2)
    source = trace(node.input(0), made_by)
    from_mask = source is not None and source.name in masks
    from_zero = start is not None and start.content is not None and not any(start.content)
    return bool(node.op == "Slice" and from_mask and from_zero and end and not end.constant)


_RULES = (
    make_import_rule("npu"),
    dynamic_shape,
    control_flow,
    gathered_experts,
    weights_as_inputs,
    grouped_weights,
    zero_points,
    make_genai_rule("npu", Outcome.REFUSED),
    state_names,
    odd_weights,
    conv_mask,
)
check_ids(_RULES)
NPU = RuleSet(
    "npu",
    _RULES,
    (".onnx", ".xml"),
    ("whether the compiler takes every node: `lfm2-deploy compile` runs it, without an NPU",),
)
