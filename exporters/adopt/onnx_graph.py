"""An ONNX graph of onnxruntime-genai's builder, Liquid AI or onnx-community -> a bundle's graph.

Enters: a graph file with its weights beside it. Leaves: the same graph in a bundle's folder, whose
states have this package's names, widths and order; weights are copied as they are. What
the graph computes is not touched, so that measuring the bundle measures the export. Knows nothing
of how it is run.
"""

from __future__ import annotations

from pathlib import Path

import onnx
from google.protobuf.message import DecodeError
from onnx import ModelProto, TensorProto

from exporters.adopt.onnx_edges import (
    KEEP,
    State,
    find_state_type,
    match_states,
    rename_keep,
    rewrite_logits,
    rewrite_states,
)
from exporters.adopt.onnx_storage import find_precision, list_storage
from exporters.adopt.onnx_weights import move_weights
from lfm2_deploy.config import Lfm2Config
from lfm2_deploy.errors import SourceError
from lfm2_deploy.imported import (
    ALL_LOGITS,
    GROWS,
    NO_PROPOSALS,
    ONE_ROW,
    POSITION_IDS,
    SLOW_EXPERTS,
)
from lfm2_deploy.importing.adopted import Adopted
from lfm2_deploy.manifest import GRAPH

# Operators of these domains come with onnxruntime's CPU provider.
_DOMAINS = {"", "ai.onnx", "com.microsoft"}
_IDS, _MASK, _POSITIONS = "input_ids", "attention_mask", "position_ids"
_INTEGERS = (TensorProto.INT64, TensorProto.INT32)
# Which input of an operator holds the cosines, a row for each position.
_COSINES = {"GroupQueryAttention": 7, "RotaryEmbedding": 2}


def adopt(file: Path, folder: Path, config: Lfm2Config) -> Adopted:
    """Put the graph and its weights into a bundle's folder; see `importing.adopted.Adopt`."""
    model = _read(file)
    graph = model.graph
    inputs = {value.name: value for value in graph.input}
    _refuse_embeddings(inputs, file)
    _refuse_operators(model, file)
    states = match_states(graph, config, file)
    keep = next((name for name in KEEP if name in inputs), None)
    known = {_IDS, _MASK, _POSITIONS, keep, *(state.input for state in states)}
    initialized = {tensor.name for tensor in graph.initializer}
    unknown = sorted(inputs.keys() - known - initialized)
    if unknown:
        raise SourceError(
            f"{file} takes an input {unknown[0]!r} that nothing here knows how to fill; export the "
            "model itself with `lfm2-deploy export`"
        )
    _check_integers(inputs, file)
    dtype = find_state_type(states, file)
    traits = _find_traits(graph, states, _POSITIONS in inputs, keep)
    positions = _count_positions(graph)
    precision = find_precision(graph, file)
    quantization = list_storage(graph, config)
    rewrite_states(graph, states, config)
    rewrite_logits(graph, file)
    if keep is not None:
        rename_keep(graph, keep)
    if GROWS in traits:
        # The builder's MultiHeadAttention graphs name shapes of repeated keys and values wrongly,
        # and onnxruntime then reuses buffers of another size ("Shape mismatch attempting to
        # re-use buffer", onnxruntime-genai 0.14.1 and 0.18.0, fp16 for CPUs). It infers shapes
        # itself.
        del graph.value_info[:]
    move_weights(model, file, folder)
    (folder / GRAPH).write_bytes(model.SerializeToString())
    tool = f"{model.producer_name} {model.producer_version}".strip()
    made_with = {model.producer_name: model.producer_version} if model.producer_name else {}
    return Adopted(
        GRAPH, "cpu", "ort", tool, made_with, precision, dtype, traits, quantization, positions
    )


def _read(file: Path) -> ModelProto:
    try:
        model = onnx.load(str(file), load_external_data=False)
    except (OSError, DecodeError, ValueError) as error:
        raise SourceError(f"{file} cannot be read as an ONNX graph ({error})") from error
    if not model.graph.node:
        raise SourceError(f"{file} holds no ONNX graph: download it again")
    return model


def _refuse_embeddings(inputs: dict[str, onnx.ValueInfoProto], file: Path) -> None:
    if _IDS in inputs:
        return
    if "inputs_embeds" in inputs:
        raise SourceError(
            f"{file} takes inputs_embeds and no input_ids, so it is the decoder of a vision or "
            "audio model (LFM2-VL, LFM2-Audio): give a text model's graph"
        )
    raise SourceError(
        f"{file} takes no input_ids (it takes {', '.join(sorted(inputs)[:4]) or 'nothing'}), so it "
        "is no language model's graph: give the decoder's, such as onnx/model_q4.onnx"
    )


def _refuse_operators(model: ModelProto, file: Path) -> None:
    for node in model.graph.node:
        if node.domain not in _DOMAINS:
            raise SourceError(
                f"{file} uses {node.op_type} of {node.domain}, which onnxruntime does not have: "
                "export the model itself with `lfm2-deploy export`"
            )


def _check_integers(inputs: dict[str, onnx.ValueInfoProto], file: Path) -> None:
    for name in (_IDS, _MASK, _POSITIONS):
        if name in inputs and inputs[name].type.tensor_type.elem_type not in _INTEGERS:
            raise SourceError(f"{file} takes {name} of another type than int64 or int32")
    if _MASK not in inputs:
        raise SourceError(f"{file} takes no {_MASK}, so rows' lengths cannot be told to it")


def _find_traits(
    graph: onnx.GraphProto, states: list[State], positions: bool, keep: str | None
) -> tuple[str, ...]:
    past = {state.input for state in states if state.spec.kind != "conv"}
    readers = [node for node in graph.node if past & set(node.input)]
    # GroupQueryAttention writes new rows where past ones lie, if both are one buffer.
    shared = all(node.op_type == "GroupQueryAttention" for node in readers)
    slow = any(
        node.op_type == "QMoE" and not any(a.name == "accuracy_level" for a in node.attribute)
        for node in graph.node
    )
    found = {
        GROWS: not shared,
        POSITION_IDS: positions,
        ALL_LOGITS: keep is None,
        SLOW_EXPERTS: slow,
        ONE_ROW: True,
        NO_PROPOSALS: True,
    }
    return tuple(trait for trait, has in found.items() if has)


def _count_positions(graph: onnx.GraphProto) -> int:
    rows = {tensor.name: tensor.dims[0] for tensor in graph.initializer if len(tensor.dims) == 2}
    found = [
        rows[node.input[place]]
        for node in graph.node
        if (place := _COSINES.get(node.op_type)) is not None
        and len(node.input) > place
        and node.input[place] in rows
    ]
    return min(found, default=0)
