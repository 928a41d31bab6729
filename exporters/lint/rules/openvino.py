"""OpenVINO on CPU and Intel GPU: ONNX files it imports, and IRs as openvino-genai reads them."""

from __future__ import annotations

from collections.abc import Iterator

from exporters.lint.graph import OPENVINO, Graph
from exporters.lint.kernels import load_imported
from exporters.lint.rule import Fault, Rule, RuleSet, check_ids, rule
from lfm2_deploy.findings import Outcome

_IMPORT = "asked of OpenVINO 2026.4.1, an operator at a time (scripts/list_openvino_operators.py)"
GENAI_INPUTS = frozenset({"input_ids", "attention_mask", "position_ids", "beam_idx"})


def make_import_rule(target: str) -> Rule:
    """The rule that OpenVINO's import knows an operator.

    Args:
        target: the first half of the rule's id.
    """

    @rule(
        f"{target}/not-imported",
        Outcome.REFUSED,
        advice="lower it to operators that are imported",
        source=_IMPORT,
    )
    def not_imported(graph: Graph) -> Iterator[Fault]:
        """OpenVINO has no conversion rule for the operator, and reading the file fails."""
        for node in graph.nodes:
            known = load_imported().get(node.domain, frozenset())
            if node.domain != OPENVINO and node.op not in known:
                yield Fault("no conversion rule", "an operator that is imported", node)

    return not_imported


def make_genai_rule(target: str, outcome: Outcome) -> Rule:
    """The rule that a stateful IR has the inputs openvino-genai feeds.

    Args:
        target: the first half of the rule's id.
        outcome: what becomes of a graph that lacks one.
    """

    @rule(
        f"{target}/genai-inputs",
        outcome,
        advice="name the inputs so, and leave none out",
        source="openvino-genai 2026.4, which feeds all four to a stateful language model",
    )
    def genai_inputs(graph: Graph) -> Iterator[Fault]:
        """openvino-genai and NPUW feed input_ids, attention_mask, position_ids and beam_idx to a
        stateful language model."""
        missing = GENAI_INPUTS - {value.name for value in graph.inputs}
        if graph.names_of_states and missing:
            yield Fault(f"no input {', '.join(sorted(missing))}", ", ".join(sorted(GENAI_INPUTS)))

    return genai_inputs


@rule(
    "igpu/int8-experts",
    Outcome.REMARK,
    advice="store experts in 4 bits",
    source="openvinotoolkit/openvino#38211",
)
def int8_experts(graph: Graph) -> Iterator[Fault]:
    """The GPU fuses a mixture whose experts have 4 bits, and computes all of them one by one if
    they have 8."""
    for node in graph.live:
        for value in node.inputs:
            stacked = value is not None and value.constant and (value.rank or 0) >= 3
            if stacked and value is not None and value.type in ("int8", "uint8"):
                yield Fault(f"stacked weights of {value.type}", "int4 or uint4", node)


_OPEN = (
    "whether MatMuls over stacked experts are fused: count GatherMatmul in the compiled model",
    "operators of an IR: every one that OpenVINO writes it also reads",
)
_IGPU_RULES = (
    make_import_rule("igpu"),
    make_genai_rule("igpu", Outcome.REMARK),
    int8_experts,
)
_CPU_RULES = (
    make_import_rule("openvino-cpu"),
    make_genai_rule("openvino-cpu", Outcome.REMARK),
)
check_ids((*_IGPU_RULES, *_CPU_RULES))
IGPU = RuleSet("igpu", _IGPU_RULES, (".xml", ".onnx"), _OPEN)
OPENVINO_CPU = RuleSet("openvino-cpu", _CPU_RULES, (".xml", ".onnx"), _OPEN)
