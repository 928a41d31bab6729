"""What the targets for GPUs make: graphs, their inputs and outputs, and how weights are stored."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from onnx import TensorProto

from exporters.draft import Draft
from exporters.lowering import build_drafts
from exporters.options import ExportOptions
from exporters.passes.gpu.frame import bind_weights
from exporters.quantize.plan import PRECISIONS, Precision, plan_tensors
from exporters.stitch import BlockTracer
from exporters.targets import directml
from exporters.targets.directml import DIRECTML
from exporters.targets.target import Target
from exporters.targets.webgpu import WEBGPU
from lfm2_deploy.bundle import WEIGHTS, Bundle
from lfm2_deploy.checkpoint import open_checkpoint
from lfm2_deploy.contracts import Checkpoint
from lfm2_deploy.errors import ExportError
from lfm2_deploy.gpu_graphs import (
    BOUND_WEIGHTS,
    CONV_ENDS,
    DECODE,
    INPUT_IDS,
    LOGIT_COUNT,
    LOGIT_ROWS,
    LOGITS,
    POSITIONS,
    PREFILL,
    ROOM,
    SEQLENS,
    STEPS,
    TOTAL,
    BoundWeight,
    parse_bound_weights,
)
from lfm2_deploy.registry import find_runtime
from lfm2_deploy.states import list_states
from lfm2_deploy.weights import WeightSpec, list_weights
from runtimes.reference import load as load_reference

from .graphs import read_as_stored
from .test_pipeline import Watched, rms

each_precision = pytest.mark.parametrize("precision", PRECISIONS)
PARTS_OF = (PREFILL, DECODE)
PARTS = [(WEBGPU, "model"), (DIRECTML, PREFILL), (DIRECTML, DECODE)]
each_part = pytest.mark.parametrize(("target", "part"), PARTS, ids=lambda v: getattr(v, "name", v))

# What each graph may hold, besides MatMulNBits in integers and Cast where it computes in float16.
EVERYWHERE = {
    *("Add", "Cast", "Concat", "Div", "Gather", "GatherElements", "MatMul", "MatMulNBits", "Mul"),
    *("ReduceSum", "Reshape", "Sigmoid", "Slice", "Split", "TopK", "Transpose", "Unsqueeze"),
    *("GroupQueryAttention", "SimplifiedLayerNormalization", "Gemm"),
    "SkipSimplifiedLayerNormalization",
}
FUSED = {"CausalConvWithState", "GatherBlockQuantized", "QMoE", "Log", "GreaterOrEqual", "Where"}
APART = {"Conv", "RotaryEmbedding", "Sub"}
ALLOWED: Mapping[str, set[str]] = {
    "model": EVERYWHERE | FUSED,
    PREFILL: EVERYWHERE | APART,
    DECODE: EVERYWHERE | APART,
}


@pytest.fixture
def lower(checkpoint: Checkpoint, trace_once: BlockTracer) -> Callable[..., Draft]:
    """A part of a target, lowered; no weight is read."""

    def build(target: Target, part: str, precision: Precision) -> Draft:
        return build_drafts(checkpoint.config, ExportOptions(target, precision), trace_once)[part]

    return build


def list_operators(draft: Draft) -> set[str]:
    return {node.op_type for node in draft.graph}


# Graphs


@each_precision
@each_part
def test_graph_holds_no_operator_outside_of_what_is_known_to_run(
    lower: Callable[..., Draft], target: Target, part: str, precision: Precision
) -> None:
    draft = lower(target, part, precision)
    assert list_operators(draft) <= ALLOWED[part]
    assert {node.domain for node in draft.graph} <= {"", "com.microsoft"}
    # What a GPU's provider would leave to the CPU, or not take at all.
    assert not {n for n in list_operators(draft) if n.startswith(("Scatter", "Shape", "Range"))}


@each_precision
def test_each_primitive_has_the_operator_that_was_chosen_for_it(
    lower: Callable[..., Draft], precision: Precision
) -> None:
    is_packed = precision in ("int8", "int4")
    fused = list_operators(lower(WEBGPU, "model", precision))
    assert {"CausalConvWithState", "GroupQueryAttention"} <= fused
    assert ("QMoE" in fused, "GatherBlockQuantized" in fused) == (is_packed, is_packed)
    for part in (PREFILL, DECODE):
        apart = list_operators(lower(DIRECTML, part, precision))
        assert {"Conv", "RotaryEmbedding", "GroupQueryAttention"} <= apart
        assert ("MatMulNBits" in apart) == is_packed
    # Gathered experts for one token, all of them for many.
    names = {part: set(lower(DIRECTML, part, precision).graph.initializers) for part in PARTS_OF}
    assert ["experts.5" in names[part] for part in PARTS_OF] == [True, False]


@each_precision
@each_part
def test_nothing_is_float64_and_no_weight_is_left_undescribed(
    lower: Callable[..., Draft], target: Target, part: str, precision: Precision
) -> None:
    draft = lower(target, part, precision)
    values = [*draft.graph.inputs, *draft.graph.outputs, *draft.graph.initializers.values()]
    assert all(value.dtype not in (None, ir.DataType.DOUBLE) for value in values)
    casts = [n.attributes["to"].value for n in draft.graph if n.op_type == "Cast"]
    assert set(casts) <= {ir.DataType.FLOAT, ir.DataType.FLOAT16}
    for name, value in draft.graph.initializers.items():
        assert name in draft.book.declared or value.const_value is not None


@each_part
def test_opsets_are_those_that_kernels_are_registered_for(
    lower: Callable[..., Draft], target: Target, part: str
) -> None:
    versions = lower(target, part, "int4").graph.opset_imports
    # DirectML's Conv is gone with 22, Reshape and Cast with 23.
    assert versions == {"": 21, "com.microsoft": 1}


@each_precision
@each_part
def test_inputs_and_outputs_are_those_of_the_contract(
    lower: Callable[..., Draft],
    checkpoint: Checkpoint,
    target: Target,
    part: str,
    precision: Precision,
) -> None:
    draft, config = lower(target, part, precision), checkpoint.config
    steps, rows = (1, 1) if part == DECODE else (STEPS, LOGIT_COUNT)
    floats = ir.DataType.FLOAT if precision == "fp32" else ir.DataType.FLOAT16
    expected: dict[str, tuple[ir.DataType, list[Any]]] = {
        INPUT_IDS: (ir.DataType.INT64, [1, steps]),
        POSITIONS: (ir.DataType.INT64, [1, steps]),
        SEQLENS: (ir.DataType.INT32, [1]),
        TOTAL: (ir.DataType.INT32, [1]),
        LOGIT_ROWS: (ir.DataType.INT64, [rows]),
        CONV_ENDS: (ir.DataType.INT64, [3]),
    }
    if part == "model":
        del expected[POSITIONS]  # GroupQueryAttention rotates
    if part != PREFILL:
        del expected[CONV_ENDS]  # nothing is padded
    states: dict[str, tuple[ir.DataType, list[Any]]] = {}
    for state in list_states(config):
        shape: list[Any] = [1, 64, 3] if state.kind == "conv" else [1, 2, ROOM, 16]
        states[state.input] = states[state.output] = (floats, shape)
    bound = set(draft.bound)
    given = {str(v.name): v for v in draft.graph.inputs if v.name not in bound}
    assert list(given) == [*expected, *(s.input for s in list_states(config))]
    for name, (dtype, dims) in {**expected, **states}.items():
        if name in given:
            assert (given[name].dtype, describe(given[name])) == (dtype, dims), name
    outputs = {str(v.name): v for v in draft.graph.outputs}
    assert list(outputs) == [LOGITS, *(s.output for s in list_states(config))]
    assert outputs[LOGITS].dtype == ir.DataType.FLOAT
    assert describe(outputs[LOGITS]) == [1, rows, 100]
    for state in list_states(config):
        value = outputs[state.output]
        assert (value.dtype, len(describe(value))) == (floats, len(states[state.output][1]))


def describe(value: ir.Value) -> list[Any]:
    assert value.shape is not None
    return [d if isinstance(d, int) else str(d) for d in value.shape]


# Weights as inputs


@each_precision
def test_large_weights_are_bound_and_small_ones_stay(
    lower: Callable[..., Draft], precision: Precision
) -> None:
    for part in (PREFILL, DECODE):
        draft = lower(DIRECTML, part, precision)
        assert draft.bound
        kept = {name: draft.book.declared[name].size_bytes for name in draft.graph.initializers
                if name in draft.book.declared}  # fmt: skip
        assert {n for n, size in kept.items() if size >= 1024 and ".conv.weight" not in n} == set()
        assert all(draft.book.declared[name].size_bytes >= 1024 for name in draft.bound)
        inputs = {str(value.name) for value in draft.graph.inputs}
        assert set(draft.bound) <= inputs
        assert not set(draft.bound) & set(draft.graph.initializers)
        # A kernel's weights are reordered while a graph is loaded, if they are constant.
        assert not [name for name in draft.bound if ".conv.conv.weight" in name]


def test_webgpu_binds_nothing(lower: Callable[..., Draft]) -> None:
    draft = lower(WEBGPU, "model", "int4")
    assert draft.bound == []
    bind_weights(draft)
    assert draft.bound != []


@pytest.mark.parametrize("kind", ["dense", "moe"])
@pytest.mark.parametrize("precision", ["fp32", "int8"])
def test_bound_weights_point_at_their_bytes(
    bundle_of: Callable[..., Bundle], kind: str, precision: Precision
) -> None:
    bundle = bundle_of(kind, precision, "directml")
    places = {part: read_bound(bundle, part) for part in (PREFILL, DECODE)}
    with open(bundle.path / WEIGHTS, "rb") as stream:
        raw = np.frombuffer(stream.read(), np.uint8)
    everything = places[PREFILL] | places[DECODE]
    # Both graphs mean the same bytes by a name.
    assert all(everything[n] == p for part in places.values() for n, p in part.items())
    end = 0
    for name, place in sorted(everything.items(), key=lambda item: item[1].offset):
        assert place.offset >= end, f"{name} overlaps what lies before it"
        end = place.offset + int(np.prod(place.shape)) * np.dtype(place.dtype).itemsize
        assert end <= len(raw)
        if name.startswith("zero_points"):
            assert (raw[place.offset : end] == 128).all()


def test_bound_weight_of_a_projection_is_the_checkpoints_turned(
    bundle_of: Callable[..., Bundle], transformers_models: Mapping[str, Any]
) -> None:
    bundle, name = bundle_of("dense", "fp32", "directml"), "model.layers.0.conv.in_proj.weight"
    place = read_bound(bundle, PREFILL)[f"{name}.turned.fp32"]
    stored = np.memmap(bundle.path / WEIGHTS, place.dtype, "r", place.offset, place.shape)
    weight = dict(transformers_models["dense"].named_parameters())[name].detach().numpy()
    np.testing.assert_array_equal(stored, weight.T)


def read_bound(bundle: Bundle, part: str) -> dict[str, BoundWeight]:
    model = onnx.load(bundle.find_graph(part), load_external_data=False)
    metadata = {entry.key: entry.value for entry in model.metadata_props}
    bound = parse_bound_weights(metadata[BOUND_WEIGHTS], (bundle.path / WEIGHTS).stat().st_size)
    inputs = {value.name: value.type.tensor_type for value in model.graph.input}
    for name, place in bound.items():
        dims = tuple(d.dim_value for d in inputs[name].shape.dim)
        numpy_type = onnx.helper.tensor_dtype_to_np_dtype(inputs[name].elem_type)
        assert (place.dtype, place.shape) == (numpy_type.name, dims)
        assert inputs[name].elem_type != TensorProto.DOUBLE
    return bound


@pytest.mark.parametrize("part", [PREFILL, DECODE])
def test_every_row_of_8_bits_has_an_even_number_of_groups(
    lower: Callable[..., Draft], part: str
) -> None:
    draft = lower(DIRECTML, part, "int8")
    products = [n for n in draft.graph if n.op_type == "MatMulNBits"]
    assert products
    for node in products:
        groups = node.attributes["K"].value / node.attributes["block_size"].value
        assert groups % 2 == 0, node.name
        points = node.inputs[3]
        assert points is not None
        assert points.shape is not None
        assert list(points.shape) == [node.attributes["N"].value * int(groups)]


# The plan


def test_groups_of_directml_are_halved_where_a_row_has_an_odd_number(
    checkpoint: Checkpoint,
) -> None:
    weights = list_weights(checkpoint.config)
    usual, even = plan_tensors(weights, "int8"), directml.plan(weights, "int8")
    for weight in weights:
        entry = even[weight.name]
        if not entry.is_quantized:
            assert entry == usual[weight.name]
            continue
        sizes = weight.shape if weight.role == "expert" else weight.shape[-1:]
        assert all(size % (2 * entry.group) == 0 for size in sizes), weight.name
        # No smaller than it must be.
        assert entry.group == usual[weight.name].group or any(
            size // (2 * entry.group) % 2 for size in sizes
        )


def test_4_bits_keep_their_groups(checkpoint: Checkpoint) -> None:
    weights = list_weights(checkpoint.config)
    usual, even = plan_tensors(weights, "int4"), directml.plan(weights, "int4")
    assert {w.name for w in weights if usual[w.name] != even[w.name]} == {
        "model.embed_tokens.weight"  # 8 bits
    }


def test_three_groups_become_six() -> None:
    odd = WeightSpec("model.layers.0.mlp.weight", (64, 96), "projection")
    assert plan_tensors([odd], "int8")[odd.name].group == 32
    assert directml.plan([odd], "int8")[odd.name].group == 16


@pytest.mark.parametrize("part", [PREFILL, DECODE])
def test_smallest_group_is_one_that_matmulnbits_knows(
    lower: Callable[..., Draft], part: str
) -> None:
    for precision in ("int8", "int4"):
        for node in lower(DIRECTML, part, precision).graph:
            if node.op_type == "MatMulNBits":
                group = node.attributes["block_size"].value
                assert group >= 16
                assert group & (group - 1) == 0


def test_plan_that_finds_no_group_refuses(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(directml, "_SMALLEST_GROUP", 32)
    odd = WeightSpec("model.layers.0.mlp.weight", (64, 96), "projection")
    with pytest.raises(ExportError) as caught:
        directml.plan([odd], "int8")
    assert str(caught.value) == (
        "model.layers.0.mlp.weight is 64 x 96, which DirectML cannot take in 8 bits; "
        "export with --precision fp16"
    )


# What comes out

# A share of the logits' root mean square, at the median position. Nothing but float16's rounding
# is between them: at most 6e-3 seen; activations in int8 would be 3e-2 to 5e-2.
HALF_ERROR = 0.02


@pytest.mark.parametrize("precision", ["int8", "int4"])
@pytest.mark.parametrize("kind", ["dense", "moe"])
@pytest.mark.parametrize("target", [WEBGPU, DIRECTML], ids=lambda target: target.name)
def test_integer_bundle_equals_torch_on_dequantized_weights(
    checkpoints: Mapping[str, Path],
    bundle_of: Callable[..., Bundle],
    target: Target,
    kind: str,
    precision: Precision,
) -> None:
    original = open_checkpoint(str(checkpoints[kind]))
    stored = read_as_stored(original, precision, target.plan)
    rounded = load_reference(Watched(original, stored))
    bundle = bundle_of(kind, precision, target.name)
    runtime = find_runtime(target.runtime)(bundle, threads=1, device="cpu")
    row = np.random.default_rng(0).integers(8, 512, 48).tolist()
    scored, expected = (r.open(1, 48).score([row])[0] for r in (runtime, rounded))
    error = rms(scored - expected) / rms(expected.ravel())
    assert np.median(error) < HALF_ERROR
