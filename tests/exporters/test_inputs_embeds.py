"""Graphs of a decoder that takes embeddings, as readers of other makers find them."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import onnxruntime as ort
import pytest

from lfm2_deploy import export, open_bundle
from lfm2_deploy.bundle import Bundle, check_destination, list_foreign
from lfm2_deploy.errors import BundleError, ExportError
from lfm2_deploy.manifest import MANIFEST

PRECISIONS = ["fp32", "fp16", "int8", "int4"]


@pytest.fixture(scope="module")
def bundles(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Bundle]:
    root = tmp_path_factory.mktemp("embeds")
    return {
        precision: export(
            "synthetic:tiny-dense", root / precision, precision=precision, inputs_embeds=True
        )
        for precision in PRECISIONS
    }


def read(bundle: Bundle, file: str) -> onnx.ModelProto:
    return onnx.load(bundle.path / file, load_external_data=False)


@pytest.mark.parametrize("precision", PRECISIONS)
def test_graphs_have_the_names_of_transformers_vision_exports(
    precision: str, bundles: dict[str, Bundle]
) -> None:
    bundle = bundles[precision]
    assert [(g.name, g.file) for g in bundle.manifest.graphs] == [
        ("model", "model.onnx"),
        ("embed", "embed_tokens.onnx"),
    ]
    decoder, look_up = (read(bundle, graph.file).graph for graph in bundle.manifest.graphs)
    assert [value.name for value in decoder.input][:2] == ["inputs_embeds", "attention_mask"]
    assert [value.name for value in look_up.input] == ["input_ids"]
    assert [value.name for value in look_up.output] == ["inputs_embeds"]
    width = bundle.config.hidden_size
    for value in (decoder.input[0], look_up.output[0]):
        dims = value.type.tensor_type.shape.dim
        assert [d.dim_param or d.dim_value for d in dims] == [
            "batch_size",
            "sequence_length",
            width,
        ]
        assert value.type.tensor_type.elem_type == onnx.TensorProto.FLOAT


@pytest.mark.parametrize("precision", PRECISIONS)
def test_table_of_a_tied_model_is_stored_once(precision: str, bundles: dict[str, Bundle]) -> None:
    bundle = bundles[precision]

    def places(file: str) -> set[tuple[str, str]]:
        found = set()
        for tensor in read(bundle, file).graph.initializer:
            entries = {entry.key: entry.value for entry in tensor.external_data}
            if entries:
                found.add((entries["location"], entries["offset"]))
        return found

    look_up = places("embed_tokens.onnx")
    assert look_up
    assert look_up <= places("model.onnx")


def test_bundle_is_as_large_as_one_of_ids(bundles: dict[str, Bundle], tmp_path: Path) -> None:
    ids = export("synthetic:tiny-dense", tmp_path / "ids", canary=False)
    name = "model.onnx.data"
    sizes = [b.manifest.files[name].size_bytes for b in (bundles["int4"], ids)]
    # In another order, and the last tensor is not padded to a page.
    assert abs(sizes[0] - sizes[1]) < 4096


def test_both_graphs_run_in_plain_onnxruntime(bundles: dict[str, Bundle]) -> None:
    bundle = bundles["fp32"]
    decoder, look_up = (
        ort.InferenceSession(str(bundle.path / graph.file)) for graph in bundle.manifest.graphs
    )
    (rows,) = look_up.run(None, {"input_ids": np.array([[5, 6, 7], [8, 9, 10]])})
    assert rows.shape == (2, 3, bundle.config.hidden_size)
    states = {
        spec.input: np.zeros(spec.concrete_shape(2, 0 if spec.kind != "conv" else 1), spec.dtype)
        for spec in bundle.manifest.states
    }
    feeds = {"inputs_embeds": rows, "attention_mask": np.ones((2, 3), np.int64), **states}
    logits = decoder.run(["logits"], feeds)[0]
    assert logits.shape == (2, 1, bundle.config.vocab_size)
    assert np.isfinite(logits).all()


def test_onnxruntime_genai_finds_no_config_that_it_could_not_run(
    bundles: dict[str, Bundle],
) -> None:
    assert "genai_config.json" not in bundles["int4"].manifest.files
    assert bundles["int4"].manifest.readers == ()


@pytest.mark.parametrize("reader", ["genai", "genai-legacy", "transformersjs"])
def test_reader_of_token_ids_is_refused_by_name(reader: str, tmp_path: Path) -> None:
    with pytest.raises(ExportError, match=f"--io {reader} is for graphs that take token ids"):
        export("synthetic:tiny-dense", tmp_path / "x", io=[reader], inputs_embeds=True)
    assert not (tmp_path / "x").exists()


def test_bundle_with_a_damaged_manifest_is_known_and_replaced(tmp_path: Path) -> None:
    out = tmp_path / "bundle"
    export("synthetic:tiny-dense", out, inputs_embeds=True, canary=False)
    (out / MANIFEST).write_text("{")
    assert list_foreign(out) == []
    with pytest.raises(BundleError, match="--overwrite"):
        check_destination(out, overwrite=False)
    export("synthetic:tiny-dense", out, inputs_embeds=True, canary=False, overwrite=True)
    assert len(open_bundle(out).manifest.graphs) == 2


def test_untied_models_table_is_kept_beside_its_head(tmp_path: Path) -> None:
    from exporters.options import ExportOptions
    from exporters.pipeline import export_checkpoint
    from lfm2_deploy.checkpoint.synthetic import SyntheticCheckpoint, open_synthetic
    from lfm2_deploy.config import parse_config
    from lfm2_deploy.contracts import ignore_progress
    from lfm2_deploy.registry import find_runtime, find_target
    from lfm2_deploy.weights import list_weights

    raw = {**open_synthetic("tiny-dense").raw_config, "tie_word_embeddings": False}
    raw.pop("tie_embedding", None)
    config = parse_config(raw)
    specs = {spec.name: spec for spec in list_weights(config)}
    checkpoint = SyntheticCheckpoint(config, raw, open_synthetic("tiny-dense").origin, {}, 0, specs)
    logits = []
    for embeds in (False, True):
        options = ExportOptions(find_target("cpu"), "int4", inputs_embeds=embeds)
        bundle = export_checkpoint(checkpoint, tmp_path / str(embeds), options, ignore_progress)
        logits.append(find_runtime("ort")(bundle, threads=1).open(1, 8).prefill([[5, 6, 7]]))
    assert np.array_equal(*logits)
