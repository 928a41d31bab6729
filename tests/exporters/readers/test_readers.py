"""`--io`: the canonical graph under other programs' names, over the same weights."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime as ort
import pytest
from transformers import AutoConfig

from exporters.readers.reader import READERS, choose_readers
from lfm2_deploy.api import export
from lfm2_deploy.bundle import Bundle, list_foreign, open_bundle
from lfm2_deploy.config import Lfm2Config
from lfm2_deploy.contracts import Runtime
from lfm2_deploy.errors import BundleError, ExportError, UnknownOptionError

from ...logits import FLOAT_EXPERTS  # noqa: TID252

PROMPT = [1, 17, 300, 9, 255]
STEPS = 12


@pytest.fixture(scope="module", params=["dense", "moe"])
def bundle(
    request: Any, checkpoints: Mapping[str, Path], tmp_path_factory: pytest.TempPathFactory
) -> Bundle:
    """In float32, for transformers.js and an old onnxruntime-genai beside ours."""
    place = tmp_path_factory.mktemp("readers") / "bundle"
    source = str(checkpoints[request.param])
    return export(source, place, precision="fp32", io=["transformersjs", "genai-legacy"])


def run_as_a_foreign_program(graph: Path, config: Lfm2Config, steps: int) -> list[int]:
    """Greedy tokens, driven by declared inputs and outputs alone, as transformers.js does."""
    session = ort.InferenceSession(str(graph), providers=["CPUExecutionProvider"])
    inputs = {spec.name for spec in session.get_inputs()}
    states = {
        spec.name: np.zeros(
            [1 if d == "batch_size" else d if isinstance(d, int) else 0 for d in spec.shape],
            np.float32,
        )
        for spec in session.get_inputs()
        if spec.name.startswith("past")
    }
    names = [output.name for output in session.get_outputs()]
    ids, tokens = [PROMPT], []
    for _ in range(steps):
        total = len(PROMPT) + len(tokens)
        feeds = {
            "input_ids": np.array(ids, np.int64),
            "attention_mask": np.ones((1, total), np.int64),
            **states,
        }
        # Of transformers.js: a scalar, as it feeds it.
        if "num_logits_to_keep" in inputs:
            feeds["num_logits_to_keep"] = np.array(1, np.int64)
        outputs = dict(zip(names, session.run(None, feeds), strict=True))
        tokens.append(int(outputs["logits"][0, -1].argmax()))
        ids = [tokens[-1:]]
        states = {name: outputs[_present(name)] for name in states}
    return tokens


def _present(past: str) -> str:
    return past.replace("past_key_values", "present").replace("past_conv", "present_conv")


def generate(runtime: Runtime, steps: int) -> list[int]:
    session = runtime.open(1, len(PROMPT) + steps)
    logits, tokens = session.prefill([PROMPT]), []
    for _ in range(steps):
        tokens.append(int(logits[0].argmax()))
        logits = session.decode([tokens[-1]])
    return tokens


def test_each_readers_graph_gives_the_tokens_of_the_canonical_one(
    bundle: Bundle, open_ort: Callable[[Bundle], Runtime]
) -> None:
    ours = generate(open_ort(bundle), STEPS)
    assert len(set(ours)) > 2
    files = {record.io: record.file for record in bundle.manifest.readers}
    assert files == {
        "transformersjs": "onnx/model.onnx",
        "genai-legacy": "model_genai_legacy.onnx",
    }
    for file in files.values():
        assert run_as_a_foreign_program(bundle.path / file, bundle.config, STEPS) == ours


@pytest.mark.parametrize("precision", ["int8", "int4"])
def test_readers_integer_graphs_give_our_tokens_where_our_experts_compute_in_float32(
    precision: str, checkpoints: Mapping[str, Path], tmp_path: Path,
    open_ort: Callable[[Bundle], Runtime], monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    # Their graphs lose QMoE's 8-bit activations and nothing else.
    monkeypatch.setenv(*FLOAT_EXPERTS)
    io = ["transformersjs", "genai-legacy"]
    bundle = export(str(checkpoints["moe"]), tmp_path / "bundle", precision=precision, io=io)
    ours = generate(open_ort(bundle), 4 * STEPS)
    assert len(set(ours)) > STEPS
    for record in bundle.manifest.readers:
        if record.io in io:
            graph = bundle.path / record.file
            assert run_as_a_foreign_program(graph, bundle.config, 4 * STEPS) == ours


def test_conv_states_are_as_wide_as_hugging_face_has_them(bundle: Bundle) -> None:
    model = onnx.load(bundle.path / "onnx/model.onnx", load_external_data=False)
    ends = {v.name: _shape(v) for v in (*model.graph.input, *model.graph.output)}
    width, hidden = bundle.config.conv_L_cache, bundle.config.hidden_size
    for layer in bundle.config.conv_layers:
        assert ends[f"past_conv.{layer}"] == ["batch_size", hidden, width]
        assert ends[f"present_conv.{layer}"] == ["batch_size", hidden, width]
    assert not [name for name in ends if name.startswith("window")]


def _shape(value: onnx.ValueInfoProto) -> list[int | str]:
    return [d.dim_param or d.dim_value for d in value.type.tensor_type.shape.dim]


def test_all_graphs_read_one_weights_file(bundle: Bundle) -> None:
    graphs = {"model.onnx", *(record.file for record in bundle.manifest.readers)}
    for file in graphs:
        model = onnx.load(bundle.path / file, load_external_data=False)
        stored = {
            entry.value
            for tensor in model.graph.initializer
            for entry in tensor.external_data
            if entry.key == "location"
        }
        (location,) = stored
        assert (bundle.path / file).parent / location == bundle.weights
    large = [name for name, record in bundle.manifest.files.items() if record.size_bytes > 1e6]
    assert large == [bundle.manifest.weights] == ["onnx/model.onnx_data"]


def test_config_says_where_transformersjs_finds_the_weights(bundle: Bundle) -> None:
    config = json.loads((bundle.path / "config.json").read_text())
    assert config["transformers.js_config"] == {
        "dtype": "fp32",
        "use_external_data_format": {"model.onnx": 1},
    }
    assert config["layer_types"] == list(bundle.config.layer_types)
    genai = json.loads((bundle.path / "genai_config.json").read_text())
    decoder = genai["model"]["decoder"]
    assert decoder["filename"] == "model_genai_legacy.onnx"
    assert decoder["inputs"]["past_conv_names"] == "past_conv.%d"


def test_config_is_read_by_transformers_as_the_checkpoints_is(
    bundle: Bundle, checkpoints: Mapping[str, Path]
) -> None:
    kind = "moe" if bundle.config.moe else "dense"
    found = AutoConfig.from_pretrained(bundle.path).to_dict()
    expected = AutoConfig.from_pretrained(checkpoints[kind]).to_dict()
    found.pop("transformers.js_config")
    for config in (found, expected):
        del config["_name_or_path"]
    assert found == expected


def test_bundle_with_a_folder_is_whole_and_can_be_replaced(
    bundle: Bundle, tmp_path: Path, checkpoints: Mapping[str, Path]
) -> None:
    open_bundle(bundle.path).verify()
    assert not list_foreign(bundle.path)
    place = tmp_path / "bundle"
    export(str(checkpoints["dense"]), place, precision="fp32", io=["transformersjs"])
    (place / "onnx" / "mine.txt").write_text("kept")
    with pytest.raises(BundleError, match=r"also holds onnx/mine\.txt"):
        export(str(checkpoints["dense"]), place, precision="fp32", overwrite=True)
    (place / "onnx" / "mine.txt").unlink()
    export(str(checkpoints["dense"]), place, precision="fp32", overwrite=True)
    assert not (place / "onnx").exists()


@pytest.mark.parametrize(
    ("names", "target", "offered", "words"),
    [
        (["genai", "genai-legacy"], "cpu", READERS, "both want genai_config.json: choose one"),
        (["transformersjs"], "npu", [], "choose --target cpu, or leave --io out"),
    ],
)
def test_readers_that_cannot_be_are_refused(
    names: Sequence[str], target: str, offered: Sequence[str], words: str
) -> None:
    with pytest.raises(ExportError, match=words):
        choose_readers(names, target, list(offered))


def test_unknown_reader_is_refused_with_the_choice() -> None:
    with pytest.raises(UnknownOptionError, match="transformersjs"):
        choose_readers(["transformers"], "cpu", list(READERS))


def test_canonical_graph_is_read_by_genai_unless_the_old_one_is_asked_for() -> None:
    offered = list(READERS)
    assert [r.name for r in choose_readers([], "cpu", offered)] == ["genai"]
    named = [r.name for r in choose_readers(["transformersjs"], "cpu", offered)]
    assert named == ["genai", "transformersjs"]
    assert [r.name for r in choose_readers(["genai-legacy"], "cpu", offered)] == ["genai-legacy"]
    assert choose_readers([], "npu", []) == ()
