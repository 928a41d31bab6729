"""GroupQueryAttention on WebGPU. Paths are below onnxruntime/."""

from __future__ import annotations

from collections.abc import Iterator

from exporters.lint.graph import Graph
from exporters.lint.rule import Fault, rule
from exporters.lint.rules.shared import find_other_caches, list_given, list_set
from lfm2_deploy.findings import Outcome

_SOURCE = "contrib_ops/webgpu/bert/group_query_attention"
_VERSION = "onnxruntime 1.30.0; executed with onnxruntime-ep-webgpu 0.4.0"


@rule(
    "webgpu/attention-norms",
    Outcome.REFUSED,
    advice="give both weights and do_rotary=1, or normalize before it",
    source=f"{_SOURCE}.cc, {_VERSION}",
)
def attention_norms(graph: Graph) -> Iterator[Fault]:
    """GroupQueryAttention normalizes query and key only both, only if it also rotates them, and
    only if they are not packed."""
    for node in graph.find_fused("GroupQueryAttention"):
        given = list_given(node, {14: "q_norm_weight", 15: "k_norm_weight"})
        if len(given) == 1:
            yield Fault(f"{given[0]} alone", "both or none", node)
        elif given and node.integer("do_rotary", 0) != 1:
            yield Fault("q_norm_weight, and do_rotary=0", "do_rotary=1", node)
        elif given and node.input(1) is None:
            yield Fault("q_norm_weight, and packed inputs", "three inputs", node)


@rule(
    "webgpu/attention-softcap",
    Outcome.WRONG,
    advice="leave softcap at 0: the model must do without, or spell attention out",
    source=f"{_SOURCE}.h, {_VERSION} on lavapipe: softcap=0.1 is off by "
    "1.06 from the CPU, and none by 1e-7",
)
def attention_softcap(graph: Graph) -> Iterator[Fault]:
    """GroupQueryAttention reads softcap, and computes as if it were 0."""
    for node in graph.find_fused("GroupQueryAttention"):
        for ignored in list_set(node, {"softcap": 0.0}):
            yield Fault(ignored, "left out: it is ignored", node)


@rule(
    "webgpu/attention-causal",
    Outcome.REFUSED,
    advice="leave causal at 1, or spell attention out",
    source=f"{_SOURCE}.h, {_VERSION}",
)
def attention_causal(graph: Graph) -> Iterator[Fault]:
    """GroupQueryAttention does not look at tokens to come: it fails when it is loaded."""
    for node in graph.find_fused("GroupQueryAttention"):
        for refused in list_set(node, {"causal": 1}):
            yield Fault(refused, "causal=1", node)


@rule(
    "webgpu/attention-cache-type",
    Outcome.REFUSED,
    advice="keep past keys and values in the query's type",
    source="executed with onnxruntime-ep-webgpu 0.4.0 on lavapipe; the kernel's list of types "
    "does not name the past's",
)
def attention_cache_type(graph: Graph) -> Iterator[Fault]:
    """GroupQueryAttention fails when it is run with past keys and values of another type than
    the query. It loads all the same."""
    for node, seen, expected in find_other_caches(graph):
        yield Fault(seen, expected, node)


ATTENTION_RULES = (attention_norms, attention_softcap, attention_causal, attention_cache_type)
