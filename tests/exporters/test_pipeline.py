"""What an export leaves in its folder, and what it refuses to make."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest

import exporters.lowering
from exporters.describe import summarize_plan
from exporters.lowering import build_draft, build_drafts
from exporters.options import ExportOptions, choose_context
from exporters.pipeline import export_checkpoint
from exporters.quantize.plan import PRECISIONS, Precision, plan_tensors
from exporters.stitch import BlockTracer
from exporters.targets.cpu import CPU, PASSES
from exporters.targets.target import Part
from lfm2_deploy.bundle import GRAPH, WEIGHTS, Bundle, StoredTensor
from lfm2_deploy.checkpoint import open_checkpoint
from lfm2_deploy.config import Lfm2Config
from lfm2_deploy.contracts import Checkpoint, FloatArray, Origin
from lfm2_deploy.errors import BundleError, CheckpointError, ExportError
from lfm2_deploy.registry import find_runtime
from lfm2_deploy.states import list_states
from lfm2_deploy.weights import list_weights
from runtimes.reference import load as load_reference

from .graphs import Reader, read_as_stored

EMBEDDING = "model.embed_tokens.weight"
PAGE = 4096

# A share of the logits' root mean square. Kernels round activations to a 127th of their
# largest before each of some 25 products in a row, half a percent of noise each, and these
# weights amplify it: 3 to 5 % seen. A reference whose weights are not rounded to int4 is
# 50 % away.
ROUNDED_ACTIVATIONS = 0.08


@dataclass
class Watched:
    """A checkpoint that counts its reads, and reads through `reader`."""

    base: Checkpoint
    reader: Reader
    reads: Counter[str] = field(default_factory=Counter)
    side_files: Mapping[str, Path] = field(default_factory=dict)

    @property
    def config(self) -> Lfm2Config:
        return self.base.config

    @property
    def raw_config(self) -> Mapping[str, Any]:
        return self.base.raw_config

    @property
    def origin(self) -> Origin:
        return self.base.origin

    @property
    def identity(self) -> str:
        return self.base.identity

    def read(self, name: str) -> FloatArray:
        self.reads[name] += 1
        return self.reader(name)


def ignore(what: str, done: int, total: int) -> None:
    pass


@pytest.fixture
def export_tiny(
    checkpoint: Checkpoint, trace_once: BlockTracer, monkeypatch: pytest.MonkeyPatch
) -> Callable[..., Bundle]:
    """Export the tiny model, or one whose options do not reach a traced layer."""
    build = build_drafts

    def build_from_cache(config: Lfm2Config, options: ExportOptions, _: BlockTracer) -> Any:
        return build(config, options, lambda _, layer: trace_once(checkpoint.config, layer))

    monkeypatch.setattr(exporters.lowering, "build_drafts", build_from_cache)

    def export(
        out: Path, precision: Precision, model: Checkpoint = checkpoint, **options: Any
    ) -> Bundle:
        return export_checkpoint(model, out, ExportOptions(CPU, precision, **options), ignore)

    return export


def load_graph(bundle: Bundle) -> onnx.GraphProto:
    return onnx.load(bundle.graph, load_external_data=False).graph


def read_places(graph: onnx.GraphProto) -> dict[str, tuple[int, int]]:
    """Offset and length in the weights file of every initializer that lies there."""
    places = {}
    for tensor in graph.initializer:
        if tensor.data_location == onnx.TensorProto.EXTERNAL:
            entries = {entry.key: entry.value for entry in tensor.external_data}
            assert entries["location"] == WEIGHTS
            places[tensor.name] = (int(entries["offset"]), int(entries["length"]))
    return places


def count_operators(graph: onnx.GraphProto) -> Counter[str]:
    return Counter(node.op_type for node in graph.node)


# The graph


@pytest.mark.parametrize("precision", PRECISIONS)
def test_exported_graph_has_each_primitives_kernel_and_no_primitive(
    export_tiny: Callable[..., Bundle], tmp_path: Path, precision: Precision
) -> None:
    graph = load_graph(export_tiny(tmp_path / "out", precision))
    assert {node.domain for node in graph.node} == {"", "com.microsoft"}
    seen = count_operators(graph)
    assert seen["CausalConvWithState"] == seen["GroupQueryAttention"] == 2
    # Of each layer's two norms and the final one, only the first follows no residual sum;
    # the final one follows a gather. Attention has two more.
    assert seen["SkipSimplifiedLayerNormalization"] == 7
    assert seen["SimplifiedLayerNormalization"] == 2 + 2 * 2
    # Two dense feed-forwards, two gates, and the mixers' 2 or 4.
    products = 2 * 3 + 2 * 4 + 2 * 2 + 1
    if precision in ("int8", "int4"):
        assert (seen["QMoE"], seen["MatMulNBits"], seen["FusedMatMul"]) == (2, products, 2)
        assert seen["GatherBlockQuantized"] == 1
    else:
        assert (seen["MoE"], seen["FusedMatMul"], seen["Gather"]) == (2, products + 2, 1)
    assert not seen.keys() & {"Conv", "MatMul", "Softmax", "SplitToSequence", "SequenceAt"}


def test_exported_graph_states_what_it_takes_and_gives(
    export_tiny: Callable[..., Bundle], tmp_path: Path
) -> None:
    bundle = export_tiny(tmp_path / "out", "fp32")
    graph, states = load_graph(bundle), bundle.manifest.states
    assert states == list_states(bundle.config)
    inputs = [value.name for value in graph.input]
    first = ["input_ids", "attention_mask", "logits_to_keep"]
    assert inputs == [*first, *(state.input for state in states)]
    outputs = [value.name for value in graph.output]
    windows = [state.window for state in states if state.kind == "conv"]
    assert outputs == ["logits", *(state.output for state in states), *windows]
    keep = next(tensor for tensor in graph.initializer if tensor.name == "logits_to_keep")
    assert onnx.numpy_helper.to_array(keep).tolist() == [1]


def test_target_without_a_needed_pass_is_refused(
    checkpoint: Checkpoint, trace_once: BlockTracer
) -> None:
    passes = tuple(p for p in PASSES if p.__name__ not in ("lower_conv", "lower_experts"))
    parts = (Part("model", passes),)
    target = replace(CPU, name="half a CPU", make_parts=lambda shape: parts)
    with pytest.raises(ExportError) as caught:
        build_draft(checkpoint.config, ExportOptions(target, "fp32"), trace_once)
    assert "half a CPU has no lowering for CausalConv, Experts" in str(caught.value)


# The weights


def count_bytes(config: Lfm2Config, precision: Precision) -> int:
    """Bytes of all weights, each group of integers with its float32 scale."""
    plan, total = plan_tensors(list_weights(config), precision), 0
    for weight in list_weights(config):
        entry = plan[weight.name]
        total += weight.num_elements * entry.bits // 8
        total += 4 * weight.num_elements // entry.group if entry.is_quantized else 0
    return total


@pytest.mark.parametrize("precision", PRECISIONS)
def test_file_is_as_large_as_the_weights_and_the_rotary_tables(
    export_tiny: Callable[..., Bundle], tmp_path: Path, precision: Precision
) -> None:
    bundle = export_tiny(tmp_path / "out", precision)
    # A set: where bytes are shared, both names have the one place.
    places = set(read_places(load_graph(bundle)).values())
    rotary = 4 * 2 * bundle.manifest.context_length * bundle.config.head_dim // 2
    assert sum(length for _, length in places) == count_bytes(bundle.config, precision) + rotary
    ends = [offset + length for offset, length in sorted(places)]
    assert bundle.manifest.files[WEIGHTS].size_bytes == ends[-1]
    # What lies between is less than a page each, and nothing overlaps.
    starts = [offset for offset, _ in sorted(places)]
    assert all(0 <= s - e < PAGE for s, e in zip(starts[1:], ends, strict=False))
    assert all(start % PAGE == 0 for start in starts)


def test_fp32_initializers_are_the_checkpoints_tensors(
    export_tiny: Callable[..., Bundle], checkpoint: Checkpoint, tmp_path: Path
) -> None:
    bundle = export_tiny(tmp_path / "out", "fp32")
    tensors = {
        tensor.name.removesuffix(".fp32"): onnx.numpy_helper.to_array(tensor)
        for tensor in onnx.load(bundle.graph).graph.initializer
    }
    apart = [w.name for w in list_weights(checkpoint.config) if w.role != "expert"]
    for name in apart:
        np.testing.assert_array_equal(tensors[name], checkpoint.read(name))
    experts = "model.layers.3.feed_forward.experts"
    gate, up, down = (checkpoint.read(f"{experts}.4.{w}.weight") for w in ("w1", "w3", "w2"))
    np.testing.assert_array_equal(tensors[f"{experts}.fc1"][4, 0::2], gate)
    np.testing.assert_array_equal(tensors[f"{experts}.fc1"][4, 1::2], up)
    np.testing.assert_array_equal(tensors[f"{experts}.fc2"][4], down)


@pytest.mark.parametrize("precision", PRECISIONS)
@pytest.mark.parametrize("tied", [True, False])
def test_tied_embedding_is_stored_once(
    export_tiny: Callable[..., Bundle],
    make_checkpoint: Callable[..., Checkpoint],
    tmp_path: Path,
    precision: Precision,
    tied: bool,
) -> None:
    model = make_checkpoint(tie_word_embeddings=tied)
    bits = plan_tensors(list_weights(model.config), precision)[EMBEDDING].bits
    places = read_places(load_graph(export_tiny(tmp_path / "out", precision, model)))
    size = model.config.vocab_size * model.config.hidden_size * bits // 8
    tables = [
        place
        for name, place in places.items()
        if name.startswith((EMBEDDING, "lm_head.")) and not name.endswith(".scales")
    ]
    assert {length for _, length in tables} == {size}
    assert len({offset for offset, _ in tables}) == (1 if tied else 2)


@pytest.mark.parametrize("precision", PRECISIONS)
def test_each_tensor_is_read_once(
    export_tiny: Callable[..., Bundle],
    checkpoint: Checkpoint,
    tmp_path: Path,
    precision: Precision,
) -> None:
    watched = Watched(checkpoint, checkpoint.read)
    export_tiny(tmp_path / "out", precision, watched)
    assert watched.reads == Counter(weight.name for weight in list_weights(checkpoint.config))


@pytest.mark.parametrize("precision", ["int8", "int4"])
@pytest.mark.parametrize("kind", ["dense", "moe"])
def test_integer_bundle_equals_torch_on_dequantized_weights(
    checkpoints: Mapping[str, Path], bundle_of: Any, kind: str, precision: Precision
) -> None:
    original = open_checkpoint(str(checkpoints[kind]))
    rounded = load_reference(Watched(original, read_as_stored(original, precision)))
    runtime = find_runtime("ort")(bundle_of(kind, precision), threads=1)
    row = np.random.default_rng(0).integers(8, 512, 48).tolist()
    scored, expected = (r.open(1, 48).score([row])[0] for r in (runtime, rounded))
    error = rms(scored - expected) / rms(expected.ravel())
    # The median position: where two experts score almost alike, noise picks the other one.
    assert np.median(error) < ROUNDED_ACTIVATIONS


def rms(rows: FloatArray) -> FloatArray:
    root: FloatArray = np.sqrt((rows**2).mean(-1))
    return root


def test_weight_beyond_float16_is_refused_by_name(
    export_tiny: Callable[..., Bundle], checkpoint: Checkpoint, tmp_path: Path
) -> None:
    name = "model.layers.0.conv.in_proj.weight"

    def read(asked: str) -> FloatArray:
        return checkpoint.read(asked) * np.float32(1e6 if asked == name else 1)

    with pytest.raises(ExportError, match=rf"{name} holds .*float16"):
        export_tiny(tmp_path / "out", "fp16", Watched(checkpoint, read))
    assert list(tmp_path.iterdir()) == []


# Options


@pytest.mark.parametrize(("longest", "expected"), [(64, 64), (32_768, 32_768), (128_000, 32_768)])
def test_context_is_the_models_up_to_that_of_its_conversations(
    make_checkpoint: Callable[..., Checkpoint], longest: int, expected: int
) -> None:
    assert choose_context(make_checkpoint(max_position_embeddings=longest).config, None) == expected


@pytest.mark.parametrize("asked", [1, 40_000, 64_000])
def test_context_that_was_asked_for_is_taken(
    make_checkpoint: Callable[..., Checkpoint], asked: int
) -> None:
    assert choose_context(make_checkpoint(max_position_embeddings=64_000).config, asked) == asked


@pytest.mark.parametrize("asked", [65, 0, -1])
def test_impossible_context_is_refused_with_the_range(
    export_tiny: Callable[..., Bundle], tmp_path: Path, asked: int
) -> None:
    with pytest.raises(ExportError, match=f"--context {asked} is not possible: expected 1 to 64"):
        export_tiny(tmp_path / "out", "fp32", context_length=asked)
    assert list(tmp_path.iterdir()) == []


def test_context_sizes_the_rotary_tables_and_is_recorded(
    export_tiny: Callable[..., Bundle], tmp_path: Path
) -> None:
    bundle = export_tiny(tmp_path / "out", "fp32", context_length=20)
    assert bundle.manifest.context_length == 20
    assert read_places(load_graph(bundle))["rope.cos"][1] == 20 * 8 * 4
    genai = json.loads((bundle.path / "genai_config.json").read_text())
    assert genai["model"]["context_length"] == genai["search"]["max_length"] == 20


def test_unknown_precision_is_refused_with_the_choices() -> None:
    with pytest.raises(ExportError) as caught:
        ExportOptions(CPU, "int3")  # type: ignore[arg-type]
    assert "'int3': expected one of fp32, fp16, int8, int4" in str(caught.value)


# The folder


def test_manifest_says_what_was_made(export_tiny: Callable[..., Bundle], tmp_path: Path) -> None:
    manifest = export_tiny(tmp_path / "out", "int4").manifest
    assert (manifest.target, manifest.runtime, manifest.precision) == ("cpu", "ort", "int4")
    assert manifest.origin == Origin("synthetic", "tiny")
    assert manifest.model == "tiny"
    assert {"lfm2-deploy", "torch"} <= manifest.made_with.keys()
    assert set(manifest.files) == {GRAPH, WEIGHTS, "config.json", "genai_config.json"}


def test_side_files_come_along(
    export_tiny: Callable[..., Bundle], checkpoint: Checkpoint, tmp_path: Path
) -> None:
    file = tmp_path / "somewhere.json"
    file.write_text('{"version": "1.0"}')
    model = Watched(checkpoint, checkpoint.read, side_files={"special_tokens_map.json": file})
    bundle = export_tiny(tmp_path / "out", "fp32", model)
    assert (bundle.path / "special_tokens_map.json").read_text() == file.read_text()
    written = json.loads((bundle.path / "config.json").read_text())
    assert checkpoint.raw_config.items() <= written.items()


def test_summary_has_one_line_for_all_experts_of_a_layer(checkpoint: Checkpoint) -> None:
    lines = summarize_plan(plan_tensors(list_weights(checkpoint.config), "int4"))
    names = [line.name for line in lines]
    assert len(names) == len(set(names))
    layer = "model.layers.2.feed_forward"
    assert [name for name in names if name.startswith(f"{layer}.experts")] == [
        f"{layer}.experts.*.w1.weight",
        f"{layer}.experts.*.w3.weight",
        f"{layer}.experts.*.w2.weight",
    ]
    assert StoredTensor(f"{layer}.experts.*.w2.weight", 4, 32, "int4 was asked for") in lines
    apart = [w for w in list_weights(checkpoint.config) if w.role != "expert"]
    assert len(lines) == len(apart) + 2 * 3


def test_unreadable_tensor_leaves_nothing_behind(
    export_tiny: Callable[..., Bundle], checkpoint: Checkpoint, tmp_path: Path
) -> None:
    def read(name: str) -> FloatArray:
        if name.endswith("layers.3.feed_forward.experts.2.w3.weight"):
            raise CheckpointError(f"{name} is truncated")
        return checkpoint.read(name)

    with pytest.raises(CheckpointError, match="truncated"):
        export_tiny(tmp_path / "out", "int4", Watched(checkpoint, read))
    assert list(tmp_path.iterdir()) == []


def test_place_that_is_taken_is_refused_before_anything_is_read(
    export_tiny: Callable[..., Bundle], checkpoint: Checkpoint, tmp_path: Path
) -> None:
    export_tiny(tmp_path / "out", "fp32")
    watched = Watched(checkpoint, checkpoint.read)
    with pytest.raises(BundleError, match="already holds a bundle"):
        export_tiny(tmp_path / "out", "int4", watched)
    assert not watched.reads
    assert export_tiny(tmp_path / "out", "int4", overwrite=True).manifest.precision == "int4"
