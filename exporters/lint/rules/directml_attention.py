"""GroupQueryAttention on DirectML, which reads less of its inputs than the operator promises."""

from __future__ import annotations

from collections.abc import Iterator

from exporters.lint.graph import Graph
from exporters.lint.rule import Fault, rule
from exporters.lint.rules.shared import find_other_caches, list_given, list_set
from lfm2_deploy.findings import Outcome

_SOURCE = "Operators/DmlOperatorGroupQueryAttention.cpp, onnxruntime 1.30.0"
_PAST = {3: "past_key", 4: "past_value"}


@rule(
    "directml/attention-packed",
    Outcome.REFUSED,
    advice="split query, key and value, each [batch, tokens, width]",
    source=_SOURCE,
)
def attention_packed(graph: Graph) -> Iterator[Fault]:
    """GroupQueryAttention takes query, key and value apart, of three dimensions each."""
    for node in graph.find_fused("GroupQueryAttention"):
        parts = [node.input(index) for index in range(3)]
        ranks = [value.rank for value in parts if value is not None and value.rank is not None]
        if any(value is None for value in parts):
            yield Fault("packed query, key and value", "three inputs", node)
        elif any(rank != 3 for rank in ranks):
            yield Fault(f"inputs of {max(ranks)} dimensions", "3", node)


@rule(
    "directml/attention-ignored",
    Outcome.WRONG,
    advice="rotate with RotaryEmbedding before it; what else it ignores, the model must do without",
    source=_SOURCE,
)
def attention_ignored(graph: Graph) -> Iterator[Fault]:
    """GroupQueryAttention looks at query, key, value, lengths, scale and numbers of heads, and
    at nothing else: rotation, windows, soft caps, sinks, biases and quantized caches are ignored
    without a word."""
    switches: dict[str, object] = {
        "do_rotary": 0,
        "local_window_size": -1,
        "softcap": 0.0,
        "smooth_softmax": 0,
        "k_quant_type": "NONE",
        "v_quant_type": "NONE",
    }
    inputs = {9: "position_ids", 10: "attention_bias", 11: "head_sink"}
    for node in graph.find_fused("GroupQueryAttention"):
        for ignored in (*list_set(node, switches), *list_given(node, inputs)):
            yield Fault(ignored, "left out: it is ignored", node)


@rule(
    "directml/attention-refused",
    Outcome.REFUSED,
    advice="normalize query and key with SimplifiedLayerNormalization before it",
    source=_SOURCE,
)
def attention_refused(graph: Graph) -> Iterator[Fault]:
    """GroupQueryAttention neither normalizes query and key nor looks at tokens to come."""
    for node in graph.find_fused("GroupQueryAttention"):
        for name in list_given(node, {14: "q_norm_weight", 15: "k_norm_weight"}):
            yield Fault(f"input {name}", "none", node)
        if node.attributes.get("causal", 1) != 1:
            yield Fault("causal=0", "causal=1", node)


@rule(
    "directml/attention-cache-type",
    Outcome.REFUSED,
    advice="keep past keys and values in the query's type",
    source=f"{_SOURCE}; OperatorRegistration.cpp lists types of T alone; read, not run",
)
def attention_cache_type(graph: Graph) -> Iterator[Fault]:
    """GroupQueryAttention is one operation of one type, chosen by the query. The type of past
    keys and values is not part of what the kernel is registered for, so a graph with another
    one comes to DirectML all the same. That it is refused there is expected, and was not tried."""
    for node, seen, expected in find_other_caches(graph):
        yield Fault(seen, expected, node)


@rule(
    "directml/attention-chunk",
    Outcome.WRONG,
    advice="append tokens one at a time, or compute the whole text again",
    source=_SOURCE,
)
def attention_chunk(graph: Graph) -> Iterator[Fault]:
    """With more than one new token the past is taken for empty. A graph that always takes more
    loses its history in every call after the first."""
    for node in graph.find_fused("GroupQueryAttention"):
        query = node.input(0)
        tokens = query.shape[1] if query is not None and query.rank == 3 and query.shape else None
        if list_given(node, _PAST) and isinstance(tokens, int) and tokens > 1:
            yield Fault(f"{tokens} tokens in each call, and a past", "1, or no past", node)


@rule(
    "directml/attention-append",
    Outcome.REMARK,
    advice="append tokens one at a time, or compute the whole text again; this package's runtime "
    "does so",
    source=_SOURCE,
)
def attention_append(graph: Graph) -> Iterator[Fault]:
    """With more than one new token the past is taken for empty. A graph that takes any number of
    them is right for a whole text and for single tokens, and silently wrong for several after
    others: whoever calls it must know."""
    for node in graph.find_fused("GroupQueryAttention"):
        query = node.input(0)
        tokens = query.shape[1] if query is not None and query.rank == 3 and query.shape else None
        if list_given(node, _PAST) and not isinstance(tokens, int):
            yield Fault("any number of tokens, and a past", "a caller who knows", node)


@rule(
    "directml/attention-total",
    Outcome.REMARK,
    advice="make total_sequence_length an input of the graph, given from the CPU",
    source=f"{_SOURCE}; graph capture: AreAllComputeNodesAssignedToEpOrCpu in "
    "core/session/inference_session.cc",
)
def attention_total(graph: Graph) -> Iterator[Fault]:
    """total_sequence_length is read on the CPU. Where the graph computes it, every call waits
    for a copy from the GPU, and graph capture is refused."""
    for node in graph.find_fused("GroupQueryAttention"):
        total = node.input(6)
        if total is not None and not total.is_input and not total.constant:
            yield Fault("total_sequence_length computed in the graph", "an input", node)


ATTENTION_RULES = (
    attention_packed,
    attention_ignored,
    attention_refused,
    attention_cache_type,
    attention_chunk,
    attention_append,
    attention_total,
)
