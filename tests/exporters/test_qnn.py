"""What Qualcomm's target is made of: weights, ranges, and graphs whose every value is rounded."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import onnx_ir as ir
import pytest

from exporters.lowering import build_drafts
from exporters.options import ExportOptions
from exporters.passes.qnn.activations import choose_scale
from exporters.passes.qnn.weights import encode_turned
from exporters.pipeline import export_checkpoint
from exporters.quantize.calibrate import Calibration, _make_feeds, _Mixture, _reader
from exporters.quantize.evaluate import Evaluator
from exporters.quantize.pack import unpack
from exporters.quantize.ranges import Range, RangeBook, Ranges, range_key
from exporters.stitch import BlockTracer
from exporters.targets import qnn
from lfm2_deploy.checkpoint import open_checkpoint
from lfm2_deploy.contracts import Checkpoint, ignore_progress
from lfm2_deploy.errors import ExportError
from lfm2_deploy.registry import find_runtime
from lfm2_deploy.static_graphs import HIDDEN
from lfm2_deploy.weights import EMBEDDING, list_weights

ROWS = [[(7 * i + 3 * n) % 100 for i in range(24)] for n in range(2)]


# Weights


def test_turned_weights_have_positive_scales_and_half_a_step_of_error() -> None:
    weight = np.random.default_rng(0).standard_normal((48, 32)).astype(np.float32)
    weight[3] = 0
    weight[4] = -np.abs(weight[4])
    levels, scales = encode_turned(weight, 8)
    assert (levels.shape, levels.dtype, scales.shape) == ((32, 48), np.int8, (48,))
    assert (scales > 0).all()
    assert levels.min() == -127
    error = np.abs(levels.T * scales[:, None] - weight)
    assert (error <= scales[:, None] * 0.5001).all()


def test_turned_weights_of_four_bits_are_better_than_the_largest_step() -> None:
    weight = np.random.default_rng(0).standard_normal((48, 32)).astype(np.float32)
    packed, scales = encode_turned(weight, 4)
    nibbles = unpack(packed, 4).astype(np.int8)
    levels = np.where(nibbles > 7, nibbles - 16, nibbles)
    assert np.abs(levels).max() == 7
    largest = np.abs(weight).max(1, keepdims=True) / 7
    plain = np.rint(weight / largest) * largest
    error = np.square(levels.T * scales[:, None] - weight).sum(1)
    assert (error <= np.square(plain - weight).sum(1) * 1.0001).all()
    assert error.sum() < 0.9 * np.square(plain - weight).sum()


def test_tables_are_as_the_cpu_reads_them_and_the_rest_has_a_scale_a_row() -> None:
    weights = list_weights(open_checkpoint("synthetic:LFM2-350M").config)
    plan = qnn.plan(weights, "int4")
    for weight in weights:
        entry = plan[weight.name]
        if weight.role == "embedding":
            assert (entry.bits, entry.group) == (8, 256)
        elif entry.is_quantized:
            assert (entry.bits, entry.group) == (4, weight.shape[-1])


# Ranges


@pytest.mark.parametrize(
    ("seen", "signed", "scale", "zero"),
    [
        (Range(-1.0, 3.0), False, 4 / 65535, 16384),
        (Range(0.0, 1.0), False, 1 / 65535, 0),
        (Range(-2.0, 0.0), False, 2 / 65535, 65535),
        (Range(-1.0, 3.0), True, 3 / 32767, 0),
    ],
)
def test_scale_spreads_a_range_over_16_bits(
    seen: Range, signed: bool, scale: float, zero: int
) -> None:
    found = choose_scale(seen, signed)
    assert found == (pytest.approx(scale, rel=1e-6), zero)


def test_experts_of_a_layer_share_their_ranges_and_layers_do_not() -> None:
    name = "layer3/Experts_12/{}/MatMul_2:0"
    assert range_key(name.format(0)) == range_key(name.format(31))
    assert range_key(name.format(0)) != range_key(name.format(0).replace("layer3", "layer4"))
    assert range_key("moe.3.7.x") == range_key("moe.3.0.x") != range_key("moe.3.x")
    assert range_key("layer3/CausalConv_4/Mul_2:0") == "layer3/CausalConv_4/Mul_2:0"


def test_range_holds_all_that_was_seen_and_zero() -> None:
    book = RangeBook()
    book.add("a", np.array([1.5, 2.0], np.float32))
    book.add("a", np.array([-0.25], np.float32))
    book.add("empty", np.zeros(0, np.float32))
    book.add("ids", np.array([3]))
    assert book.ranges == {"a": Range(-0.25, 2.0)}
    book.add("b", np.array([1.5, 2.0], np.float32))
    assert book.ranges["b"] == Range(0.0, 2.0)


def test_graph_that_calibration_runs_gives_torch_logits(
    checkpoint: Checkpoint, trace_once: BlockTracer
) -> None:
    calibration = Calibration(checkpoint, ROWS, trace_once, ignore_progress)
    mixture = _Mixture(calibration, RangeBook(), qnn._calibrate_router, qnn._calibrate_experts)
    draft = calibration.draft(qnn.lower_layers(checkpoint.config, len(ROWS[0]), ir.DataType.FLOAT))
    evaluator = Evaluator(
        draft.graph, _reader(draft, calibration), RangeBook().add, mixture.provide
    )
    hidden = evaluator.run(_make_feeds(calibration), len(ROWS))[HIDDEN]
    table = checkpoint.read(EMBEDDING)
    reference = find_runtime("reference")(checkpoint)
    for row, found in zip(ROWS, hidden, strict=True):
        expected = reference.open(1, 32).score([row])[0]
        # Two float32 implementations, as a share of the largest logit.
        assert np.abs(found[0] @ table.T - expected).max() < 1e-4 * np.abs(expected).max()


def test_unknown_operator_is_refused_by_calibration() -> None:
    node = ir.node("Erf", [ir.Value(name="x")])
    graph = ir.Graph(node.inputs, node.outputs, nodes=[node])
    zeros = [np.zeros(2, np.float32)]
    evaluator = Evaluator(graph, lambda n: zeros[0], lambda n, a: None, lambda n, o: zeros)
    with pytest.raises(ExportError, match="does not know the operator Erf"):
        evaluator.run({"x": zeros}, 1)


# Graphs


@pytest.fixture(scope="module")
def ranges(checkpoint: Checkpoint, trace_once: BlockTracer) -> Ranges:
    return qnn.calibrate(Calibration(checkpoint, ROWS, trace_once, ignore_progress))


@pytest.fixture(scope="module")
def drafts(checkpoint: Checkpoint, trace_once: BlockTracer, ranges: Ranges) -> Mapping[str, Any]:
    options = ExportOptions(qnn.QNN, "int8", 48, chunk=7, ranges=ranges)
    return build_drafts(checkpoint.config, options, trace_once)


def on_the_npu(drafts: Mapping[str, Any]) -> Mapping[str, Any]:
    names = ("prefill", "decode", "experts")
    return {name: draft for name, draft in drafts.items() if name.startswith(names)}


def test_every_graph_begins_and_ends_where_a_mixture_is_cut(drafts: Mapping[str, Any]) -> None:
    assert [name for name in drafts if "." not in name] == ["embed", "head"]
    assert {"prefill.0", "prefill.1", "prefill.2", "decode.2", "routers.3"} <= drafts.keys()
    assert len([name for name in drafts if name.startswith("experts.2.")]) == 5
    inputs = {value.name for value in drafts["prefill.1"].graph.inputs}
    assert {"moe.2.hidden", "past.3.conv", "picks"} == inputs
    outputs = {value.name for value in drafts["prefill.1"].graph.outputs}
    assert outputs == {"moe.3.residual", "moe.3.x", "present.3.conv"}


def test_every_value_that_is_computed_with_was_rounded(drafts: Mapping[str, Any]) -> None:
    for name, draft in on_the_npu(drafts).items():
        for node in draft.graph:
            if node.op_type in ("QuantizeLinear", "DequantizeLinear"):
                continue
            for value in node.inputs:
                from_node = value.producer()
                plain = from_node is None and value.dtype in (ir.DataType.INT32, ir.DataType.INT64)
                assert plain or from_node.op_type == "DequantizeLinear", (name, node.name)


def test_nodes_have_names_of_their_own(drafts: Mapping[str, Any]) -> None:
    # onnxruntime refuses a graph in which two have one name.
    for draft in drafts.values():
        names = [node.name for node in draft.graph]
        assert len(names) == len(set(names))


def test_states_come_in_as_they_went_out(drafts: Mapping[str, Any]) -> None:
    def scale_of(graph: ir.Graph, name: str) -> tuple[str, ...]:
        value = next(v for v in (*graph.inputs, *graph.outputs) if v.name == name)
        node = value.producer()
        if node is None:
            (use,) = value.uses()
            node = use.node
        else:  # Identity(DequantizeLinear(...))
            node = node.inputs[0].producer()
        return tuple(str(v.name) for v in node.inputs[1:])

    prefill, decode = drafts["prefill.0"].graph, drafts["decode.0"].graph
    for kind in ("key", "value"):
        scales = {scale_of(graph, f"past_key_values.1.{kind}") for graph in (prefill, decode)}
        scales |= {scale_of(graph, f"present.1.{kind}") for graph in (prefill, decode)}
        assert len(scales) == 1
        assert "zero.i16.0" in next(iter(scales))
    scales = {scale_of(g, f"{p}.0.conv") for g in (prefill, decode) for p in ("past", "present")}
    assert len(scales) == 1


def test_without_ranges_weights_are_laid_out_the_same(
    checkpoint: Checkpoint, trace_once: BlockTracer, drafts: Mapping[str, Any]
) -> None:
    # A cluster's workers encode weights and know no ranges.
    options = ExportOptions(qnn.QNN, "int8", 48, chunk=7)
    plain = build_drafts(checkpoint.config, options, trace_once)
    assert plain["embed"].book.declared == drafts["embed"].book.declared
    ops = {node.op_type for node in plain["decode.0"].graph}
    assert "QuantizeLinear" not in ops


def test_rounded_precision_without_rows_is_refused(checkpoint: Checkpoint, tmp_path: Any) -> None:
    options = ExportOptions(qnn.QNN, "int8", 48, chunk=7)
    with pytest.raises(ExportError, match="needs rows of tokens to calibrate with"):
        export_checkpoint(checkpoint, tmp_path / "out", options, ignore_progress)
    assert not (tmp_path / "out").exists()


def test_progress_tells_of_calibration(checkpoint: Checkpoint, trace_once: BlockTracer) -> None:
    told: list[str] = []
    progress: Callable[[str, int, int], None] = lambda what, done, total: told.append(what)  # noqa: E731
    qnn.calibrate(Calibration(checkpoint, ROWS, trace_once, progress))
    assert set(told) == {"calibrating"}
