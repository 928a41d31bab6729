"""How somebody else's ONNX graph stores its weights: bits and groups, by the model's own names.

Names of nodes and initializers are those of onnxruntime-genai's builder, which onnx-community's
exports keep, and of Liquid AI's exports, which keep the checkpoint's. What has other names is left
out, so nothing is guessed.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

from onnx import GraphProto, NodeProto, TensorProto, helper

from lfm2_deploy.config import Lfm2Config
from lfm2_deploy.errors import SourceError
from lfm2_deploy.manifest import StoredTensor
from lfm2_deploy.weights import EMBEDDING, HEAD, list_weights

_FLOATS = {TensorProto.FLOAT: 32, TensorProto.FLOAT16: 16, TensorProto.BFLOAT16: 16}
_REASON = "as it was exported"
# Experts of onnx-community's and Liquid AI's mixtures are model_layers_2_moe_experts_...
_LAYER = re.compile(r"layers[._](\d+)[._/](.*)")
# Part of a name within a layer -> our names; the first that is found holds.
_ROLES = (
    ("conv/in_proj", ("conv.in_proj",)),
    ("conv.in_proj", ("conv.in_proj",)),
    ("conv/out_proj", ("conv.out_proj",)),
    ("conv.out_proj", ("conv.out_proj",)),
    ("conv.conv.weight", ("conv.conv",)),
    ("conv.weight", ("conv.conv",)),
    ("qkv_proj", ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj")),
    ("attn.q_proj", ("self_attn.q_proj",)),
    ("attn.k_proj", ("self_attn.k_proj",)),
    ("attn.v_proj", ("self_attn.v_proj",)),
    ("attn.o_proj", ("self_attn.out_proj",)),
    ("attn.out_proj", ("self_attn.out_proj",)),
    ("q_layernorm", ("self_attn.q_layernorm",)),
    ("k_layernorm", ("self_attn.k_layernorm",)),
    ("operator_norm", ("operator_norm",)),
    ("ffn_norm", ("ffn_norm",)),
    ("q_norm", ("self_attn.q_layernorm",)),
    ("k_norm", ("self_attn.k_layernorm",)),
    ("operator_layernorm", ("operator_norm",)),
    ("ffn_layernorm", ("ffn_norm",)),
    ("experts.gate_up_proj", ("feed_forward.experts.*.w1", "feed_forward.experts.*.w3")),
    ("experts.down_proj", ("feed_forward.experts.*.w2",)),
    ("experts_gate_up_proj", ("feed_forward.experts.*.w1", "feed_forward.experts.*.w3")),
    ("experts_down_proj", ("feed_forward.experts.*.w2",)),
    ("feed_forward.gate.", ("feed_forward.gate",)),
    ("feed_forward.w1", ("feed_forward.w1",)),
    ("feed_forward.w2", ("feed_forward.w2",)),
    ("feed_forward.w3", ("feed_forward.w3",)),
    ("moe.router", ("feed_forward.gate",)),
    ("moe.gate", ("feed_forward.gate",)),
    ("expert_bias", ("feed_forward.expert_bias",)),
    ("gate_proj", ("feed_forward.w1",)),
    ("up_proj", ("feed_forward.w3",)),
    ("down_proj", ("feed_forward.w2",)),
)


def find_precision(graph: GraphProto, file: Path) -> str:
    """What most weights are: the fewest bits there are.

    Raises:
        SourceError: weights of other bits than runtimes here know.
    """
    bits = {bits for node in graph.node for bits, _, _ in _list_packed(node)}
    integers = {"MatMulInteger", "DynamicQuantizeMatMul", "QLinearMatMul"}
    if not bits and any(node.op_type in integers for node in graph.node):
        return "int8"
    other = bits - {4, 8}
    if other:
        raise SourceError(
            f"{file} has weights of {min(other)} bits: expected 4 or 8; take another variant"
        )
    if bits:
        return f"int{min(bits)}"
    halves = any(t.data_type == TensorProto.FLOAT16 for t in graph.initializer)
    return "fp16" if halves else "fp32"


def list_storage(graph: GraphProto, config: Lfm2Config) -> tuple[StoredTensor, ...]:
    """One line for each tensor of the model whose storage is seen, experts as one."""
    known = {re.sub(r"\.experts\.\d+\.", ".experts.*.", s.name): None for s in list_weights(config)}
    found: dict[str, StoredTensor] = {}
    head: StoredTensor | None = None
    for weight, bits, group in _list_weights(graph):
        for name in _translate(weight):
            if name in known and name not in found:
                found[name] = StoredTensor(name, bits, group, _REASON)
            elif name == HEAD and EMBEDDING not in found:
                head = StoredTensor(EMBEDDING, bits, group, _REASON)
    if head is not None:  # one table for both, which the graph has as the head
        found.setdefault(EMBEDDING, head)
    return tuple(found[name] for name in known if name in found)


def _list_weights(graph: GraphProto) -> Iterator[tuple[str, int, int]]:
    """Name, bits and group of every weight; packed ones first, since their scales are floats."""
    packed = [(weight, bits, group) for n in graph.node for bits, group, weight in _list_packed(n)]
    yield from packed
    for tensor in graph.initializer:
        if tensor.data_type in _FLOATS:
            yield tensor.name, _FLOATS[tensor.data_type], 0


def _list_packed(node: NodeProto) -> list[tuple[int, int, str]]:
    """(bits, group, weight) of a node that multiplies by integers."""
    read = {a.name: helper.get_attribute_value(a) for a in node.attribute}
    group = int(read.get("block_size", 0))
    if node.op_type == "MatMulNBits":
        return [(int(read.get("bits", 4)), group, node.input[1])]
    if node.op_type == "MatMulBnb4":
        return [(4, group, node.input[1])]
    if node.op_type == "GatherBlockQuantized":
        return [(int(read.get("bits", 4)), int(read.get("block_size", 128)), node.input[0])]
    if node.op_type == "QMoE":
        bits = int(read.get("expert_weight_bits", 4))
        return [(bits, group, node.input[2]), (bits, group, node.input[5])]
    return []


def _translate(name: str) -> tuple[str, ...]:
    """Our names of what a weight is called there."""
    if "embed_tokens" in name:
        return (EMBEDDING,)
    if "lm_head" in name:
        return (HEAD,)
    if "final_norm" in name or "embedding_norm" in name:
        return ("model.embedding_norm.weight",)
    match = _LAYER.search(name)
    if match is None:
        return ()
    layer, rest = match.groups()
    roles = next((roles for part, roles in _ROLES if part in rest), ())
    suffix = "" if roles == ("feed_forward.expert_bias",) else ".weight"
    return tuple(f"model.layers.{layer}.{role}{suffix}" for role in roles)
