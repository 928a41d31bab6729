"""ONNX graphs that onnxruntime-genai's builder made, as bundles of our runtime."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

from lfm2_deploy import import_model
from lfm2_deploy.bundle import CARD, Bundle, open_bundle
from lfm2_deploy.demo import DEMO_MODEL
from lfm2_deploy.errors import GenerationError, SourceError
from lfm2_deploy.imported import (
    ALL_LOGITS,
    GROWS,
    NO_PROPOSALS,
    ONE_ROW,
    ONE_TOKEN,
    POSITION_IDS,
    SLOW_EXPERTS,
)
from lfm2_deploy.registry import find_runtime

from .conftest import CHECKPOINT, GENAI_14, GENAI_18, TOKENS

Truth = NDArray[np.float32]
# Parts of the largest logit: arithmetic in another order, and activations of 16 bits.
TOLERANCE = {"fp32": 1e-5, "fp16": 2e-2}


@pytest.fixture(scope="module", params=["genai-0.14", "genai-0.18-fp16"])
def imported(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    source = CHECKPOINT.parent / request.param
    return import_model(source, tmp_path_factory.mktemp("i") / "b", against=str(CHECKPOINT))


def _load(bundle: Bundle) -> Any:
    return find_runtime("ort")(bundle, threads=1)


def _error(found: Truth, expected: Truth) -> float:
    return float(np.abs(found - expected).max() / np.abs(expected).max())


def test_graph_of_a_builder_read_in_pieces_gives_the_models_logits(
    imported: Bundle, truth: Truth
) -> None:
    session = _load(imported).open(1, 64)
    pieces = [TOKENS[:17], TOKENS[17:18], TOKENS[18:]]
    logits = np.concatenate([session.score([piece])[0] for piece in pieces])
    assert logits.dtype == np.float32
    assert _error(logits, truth) < TOLERANCE[imported.manifest.precision]


def test_rows_of_different_length_give_what_each_gives_alone(
    imported: Bundle, truth: Truth
) -> None:
    runtime = _load(imported)
    batch, alone = runtime.open(2, 64), runtime.open(1, 64)
    together = batch.prefill([TOKENS[:5], TOKENS[:23]])
    assert np.array_equal(together[0], alone.prefill([TOKENS[:5]])[0])
    assert _error(together[1], truth[22]) < TOLERANCE[imported.manifest.precision]


def test_rewind_and_restore_go_back_exactly(imported: Bundle) -> None:
    runtime = _load(imported)
    session = runtime.open(1, 64)
    session.prefill([TOKENS[:9]])
    mark, snapshot = session.mark(), session.snapshot()
    first = session.decode([TOKENS[9]])
    session.rewind(mark)
    assert np.array_equal(session.decode([TOKENS[9]]), first)
    other = runtime.open(1, 32)
    for target in (session, other, other):
        target.restore(snapshot)
        assert target.lengths == (9,)
        assert np.array_equal(target.decode([TOKENS[9]]), first)
    session.reset()
    session.prefill([TOKENS[:9]])
    assert np.array_equal(session.decode([TOKENS[9]]), first)


def test_traits_and_capabilities_say_what_each_graph_cannot(imported: Bundle) -> None:
    record = imported.manifest.imported
    assert record is not None
    info = _load(imported).info.capabilities
    common = (ALL_LOGITS, ONE_ROW, NO_PROPOSALS)
    if imported.manifest.precision == "fp32":
        assert record.traits == common
        assert info.appends_many
    else:  # its attention is MultiHeadAttention, whose mask knows no appended prompt
        assert record.traits == (GROWS, POSITION_IDS, *common, ONE_TOKEN)
        assert record.tool.startswith("onnxruntime-genai 0.18")
        assert imported.manifest.states[0].dtype == "float16"
        assert not info.appends_many
    assert (info.max_proposal, info.joins_rows) == (0, False)
    session = _load(imported).open(1, 8)
    with pytest.raises(GenerationError, match="takes no proposals"):
        session.propose([[1]])


def test_card_says_whose_graph_it_is_and_how_it_came(imported: Bundle) -> None:
    card = (imported.path / CARD).read_text(encoding="utf-8")
    assert imported.manifest.imported is not None
    assert imported.manifest.imported.file in card
    assert "lfm2-deploy import SOURCE" in card


def test_weights_are_the_very_bytes_and_states_have_our_names(imported: Bundle) -> None:
    source = GENAI_14 if imported.manifest.precision == "fp32" else GENAI_18
    mine, theirs = imported.path / "model.onnx.data", source / "model.onnx.data"
    assert mine.read_bytes() == theirs.read_bytes()
    # onnx opens no weights that have several hard links.
    assert mine.stat().st_nlink == theirs.stat().st_nlink == 1
    graph = onnx.load(str(imported.graph), load_external_data=False).graph
    names = {value.name for value in graph.input}
    assert {spec.input for spec in imported.manifest.states} <= names
    widths = [v.type.tensor_type.shape.dim[2].dim_value for v in graph.input if "conv" in v.name]
    assert widths == [2]
    assert open_bundle(imported.path).manifest == imported.manifest


def test_folder_of_the_hub_with_a_count_of_logits_and_shards_runs(
    lay_out: Callable[..., Path], tmp_path: Path, truth: Truth
) -> None:
    folder = lay_out("q4")
    file = folder / "onnx" / "model_q4.onnx"
    model = onnx.load(str(file), load_external_data=False)
    _add_keep(model.graph)
    _shard(model.graph, folder / "onnx")
    onnx.save(model, str(file))
    bundle = import_model(folder, tmp_path / "b")
    record = bundle.manifest.imported
    assert record is not None
    assert record.file == "onnx/model_q4.onnx"
    assert ALL_LOGITS not in record.traits
    assert {"model.onnx.data", "model.onnx.data_1"} <= bundle.manifest.files.keys()
    session = _load(bundle).open(1, 64)
    assert _error(session.prefill([TOKENS])[0], truth[-1]) < TOLERANCE["fp32"]
    session.reset()
    assert _error(session.score([TOKENS])[0], truth) < TOLERANCE["fp32"]


def _add_keep(graph: onnx.GraphProto) -> None:
    """As transformers.js' graphs have it: a scalar, of the last positions."""
    for node in graph.node:
        node.output[:] = ["all_logits" if name == "logits" else name for name in node.output]
    graph.input.append(helper.make_tensor_value_info("num_logits_to_keep", TensorProto.INT64, []))
    for name, value in (("one", [1]), ("end", [2**62])):
        graph.initializer.append(numpy_helper.from_array(np.array(value, np.int64), name))
    graph.node.extend(
        [
            helper.make_node("Neg", ["num_logits_to_keep"], ["start"]),
            helper.make_node("Reshape", ["start", "one"], ["starts"]),
            helper.make_node("Slice", ["all_logits", "starts", "end", "one"], ["logits"]),
        ]
    )


def _shard(graph: onnx.GraphProto, folder: Path) -> None:
    """Weights in two files, as of models beyond 2 GB."""
    whole = (folder / "model.onnx.data").read_bytes()
    tensors = [t for t in graph.initializer if t.external_data]
    for number, name in enumerate(("model_q4.onnx_data", "model_q4.onnx_data_1")):
        (folder / name).write_bytes(whole)
        for tensor in tensors[number::2]:
            for entry in tensor.external_data:
                if entry.key == "location":
                    entry.value = name
    (folder / "model.onnx.data").unlink()


def test_weights_inside_the_graph_are_moved_out(tmp_path: Path, truth: Truth) -> None:
    (tmp_path / "in").mkdir()
    whole = onnx.load(str(GENAI_14 / "model.onnx"))
    (tmp_path / "in" / "model.onnx").write_bytes(whole.SerializeToString())
    bundle = import_model(tmp_path / "in", tmp_path / "b", against=str(CHECKPOINT))
    assert (bundle.path / "model.onnx.data").stat().st_size > 30_000
    logits = _load(bundle).open(1, 64).prefill([TOKENS])[0]
    assert _error(logits, truth[-1]) < TOLERANCE["fp32"]


def test_mixture_of_the_builder_says_that_its_experts_are_slow(tmp_path: Path) -> None:
    made = tmp_path / "made"
    builder = [sys.executable, "-m", "onnxruntime_genai.models.builder", "-m", "demo"]
    words = ["-i", DEMO_MODEL, "-o", made, "-p", "int4", "-e", "cpu", "-c", tmp_path / "cache"]
    subprocess.run([*builder, *map(str, words)], check=True, capture_output=True, timeout=300)
    bundle = import_model(made, tmp_path / "b", against=str(DEMO_MODEL))
    record = bundle.manifest.imported
    assert record is not None
    assert SLOW_EXPERTS in record.traits
    runtime = _load(bundle)
    assert any("accuracy_level" in note for note in runtime.info.notes)
    assert (bundle.manifest.precision, runtime.info.arithmetic) == ("int4", "int8")
    bits = {tensor.name: tensor.bits for tensor in bundle.manifest.quantization}
    assert bits["model.layers.2.feed_forward.experts.*.w1.weight"] == 4
    assert bits["model.layers.2.feed_forward.gate.weight"] == 32


def _break(change: Callable[[onnx.ModelProto], None], folder: Path) -> Path:
    folder.mkdir()
    model = onnx.load(str(GENAI_14 / "model.onnx"), load_external_data=False)
    change(model)
    (folder / "model.onnx").write_bytes(model.SerializeToString())
    (folder / "model.onnx.data").write_bytes((GENAI_14 / "model.onnx.data").read_bytes())
    return folder


def _rename_input(old: str, new: str) -> Callable[[onnx.ModelProto], None]:
    def change(model: onnx.ModelProto) -> None:
        for value in model.graph.input:
            value.name = new if value.name == old else value.name
        for node in model.graph.node:
            node.input[:] = [new if name == old else name for name in node.input]

    return change


def _point_outside(model: onnx.ModelProto) -> None:
    for tensor in model.graph.initializer:
        for entry in tensor.external_data:
            if entry.key == "location":
                entry.value = "../secret"


def _add_input(model: onnx.ModelProto) -> None:
    model.graph.input.append(helper.make_tensor_value_info("pixels", TensorProto.FLOAT, [1]))


def _use_foreign_operator(model: onnx.ModelProto) -> None:
    model.graph.node.append(helper.make_node("Fancy", ["logits"], ["x"], domain="acme"))


def _swap_columns(model: onnx.ModelProto) -> None:
    """A state that is not what it seems: its columns come in another order."""
    graph = model.graph
    for node in graph.node:
        node.output[:] = ["own" if name == "present_conv.1" else name for name in node.output]
    graph.initializer.append(numpy_helper.from_array(np.array([2, 1, 0]), "turned"))
    graph.node.append(helper.make_node("Gather", ["own", "turned"], ["present_conv.1"], axis=2))


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (_rename_input("past_conv.1", "past_cnv.1"), "no past.1.conv or past_conv.1"),
        (_rename_input("input_ids", "inputs_embeds"), "vision or audio model"),
        (_rename_input("input_ids", "tokens"), "takes no input_ids"),
        (_point_outside, "expected a file beside it"),
        (_add_input, "takes an input 'pixels'"),
        (_use_foreign_operator, "uses Fancy of acme"),
        (_swap_columns, "other logits token by token"),
    ],
)
def test_graph_that_cannot_be_run_is_refused_in_one_line_and_leaves_nothing(
    change: Callable[[onnx.ModelProto], None], words: str, tmp_path: Path
) -> None:
    source = _break(change, tmp_path / "source")
    with pytest.raises(SourceError, match=words) as caught:
        import_model(source, tmp_path / "b", against=str(CHECKPOINT))
    assert "\n" not in str(caught.value)
    assert sorted(file.name for file in tmp_path.iterdir()) == ["source"]


def test_config_of_another_model_is_refused(tmp_path: Path) -> None:
    source = tmp_path / "source"
    shutil.copytree(GENAI_14, source)
    config = json.loads((CHECKPOINT / "config.json").read_text("utf-8"))
    (source / "config.json").write_text(json.dumps({**config, "num_key_value_heads": 2}))
    with pytest.raises(SourceError, match=r"is \[\?, 1, \?, 16\], expected \[\?, 2, \?, 16\]"):
        import_model(source, tmp_path / "b")


def test_folder_without_config_asks_for_the_checkpoint(tmp_path: Path) -> None:
    with pytest.raises(SourceError, match="name the checkpoint it was made from with --against"):
        import_model(GENAI_14, tmp_path / "b")


def test_context_beyond_the_graphs_tables_is_refused(tmp_path: Path) -> None:
    with pytest.raises(SourceError, match="hold 1 to 256 tokens"):
        import_model(GENAI_14, tmp_path / "b", against=str(CHECKPOINT), context_length=257)
