"""optimum-onnx's export of LFM2 models: its command, function and class; what is refused."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("optimum.onnxruntime", reason="NOT RUN: optimum-onnx is not installed")

from optimum.exporters.onnx import main_export as main_export_as_it_was
from optimum.exporters.tasks import TasksManager
from optimum.onnxruntime import ORTModelForCausalLM
from transformers import AutoTokenizer

from lfm2_deploy import open_bundle
from lfm2_deploy.demo import DEMO_MODEL
from lfm2_deploy.errors import ExportError
from lfm2_deploy.integrations.optimum import Lfm2ORTModelForCausalLM, register
from lfm2_deploy.integrations.optimum_export import export_lfm2

TASK = "text-generation-with-past"


def run_optimum_cli(*words: object) -> subprocess.CompletedProcess[str]:
    """`optimum-cli export onnx` as a user runs it: nothing of ours is imported."""
    program = Path(sys.executable).with_name("optimum-cli")
    command = [program, "export", "onnx", *words]
    return subprocess.run(
        list(map(str, command)), capture_output=True, text=True, timeout=240, check=False
    )


def test_command_makes_a_bundle_that_loads_as_optimums_own_class(tmp_path: Path) -> None:
    out = tmp_path / "demo"
    done = run_optimum_cli("--model", DEMO_MODEL, "--task", TASK, "--dtype", "fp16", out)
    assert done.returncode == 0, done.stderr
    bundle = open_bundle(out)
    bundle.verify()
    assert (bundle.manifest.target, bundle.manifest.precision) == ("cpu", "fp16")
    names = {"model.onnx", "config.json", "generation_config.json", "tokenizer.json"}
    assert names <= {file.name for file in out.iterdir()}
    register()
    model = ORTModelForCausalLM.from_pretrained(out)
    assert type(model) is Lfm2ORTModelForCausalLM
    text = AutoTokenizer.from_pretrained(out)("Once upon a time", return_tensors="pt")
    written = model.generate(**text, max_new_tokens=4, do_sample=False)
    assert written.shape == (1, text["input_ids"].shape[1] + 4)


def test_command_refuses_in_one_line_and_leaves_nothing(tmp_path: Path) -> None:
    out = tmp_path / "demo"
    done = run_optimum_cli("--model", DEMO_MODEL, "--optimize", "O2", out)
    assert done.returncode == 1
    assert "Traceback" not in done.stderr
    assert done.stderr.splitlines()[-1].startswith("error: --optimize has no meaning")
    assert not out.exists()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"task": "text-generation"}, f"choose --task {TASK}"),
        ({"task": "feature-extraction"}, f"choose --task {TASK}"),
        ({"opset": 17}, "has opset 21, and --opset 17"),
        ({"dtype": "bf16"}, "choose fp32 or fp16"),
        ({"dtype": "fp16", "model_kwargs": {"precision": "int4"}}, "choose one of them"),
        ({"model_kwargs": {"output_attentions": True}}, "output_attentions"),
        ({"model_kwargs": {"context_length": "long"}}, "context_length"),
        ({"model_kwargs": {"precision": "int3"}}, "int3"),
        ({"batch_size": 4}, "--batch_size has no meaning"),
        ({"device": "cuda"}, "the export runs on the CPU"),
        ({"do_constant_folding": False}, "--no-constant-folding"),
        ({"_variant": "other"}, "--variant"),
        ({"slim": True}, "--slim"),
    ],
)
def test_option_without_a_meaning_is_refused_before_anything_is_made(
    options: Mapping[str, Any], message: str, tmp_path: Path
) -> None:
    with pytest.raises(ExportError) as caught:
        export_lfm2(str(DEMO_MODEL), tmp_path / "demo", options)
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)
    assert not list(tmp_path.iterdir())


def test_place_that_holds_something_is_refused(tmp_path: Path) -> None:
    (tmp_path / "mine.txt").write_text("keep", encoding="utf-8")
    with pytest.raises(ExportError, match="is not empty"):
        export_lfm2(str(DEMO_MODEL), tmp_path, {})


def test_class_exports_a_checkpoint_that_is_not_onnx_yet(checkpoints: Mapping[str, Path]) -> None:
    register()
    model = ORTModelForCausalLM.from_pretrained(checkpoints["dense"], export=True)
    assert type(model) is Lfm2ORTModelForCausalLM


def test_precision_and_context_come_through_model_kwargs(tmp_path: Path) -> None:
    out = tmp_path / "demo"
    export_lfm2(
        str(DEMO_MODEL), out, {"model_kwargs": {"precision": "int4", "context_length": 256}}
    )
    manifest = open_bundle(out).manifest
    assert (manifest.precision, manifest.context_length) == ("int4", 256)


@pytest.mark.parametrize("model_type", ["lfm2", "lfm2_moe"])
def test_tasks_manager_lists_lfm2(model_type: str) -> None:
    register()
    tasks = TasksManager.get_supported_tasks_for_model_type(
        model_type, "onnx", library_name="transformers"
    )
    assert list(tasks) == [TASK]


def test_graph_has_the_inputs_that_the_registered_config_tells(tmp_path: Path) -> None:
    register()
    out = tmp_path / "demo"
    export_lfm2(str(DEMO_MODEL), out, {})
    model = ORTModelForCausalLM.from_pretrained(out)
    make = TasksManager.get_exporter_config_constructor(
        "onnx", model_type="lfm2_moe", task=TASK, library_name="transformers"
    )
    told = make(model.config)
    assert {*told.inputs} == {*model.input_names, "logits_to_keep"}
    assert {*told.outputs} <= {*model.output_names}
    with pytest.raises(ExportError, match="give main_export or optimum-cli its folder"):
        told.patch_model_for_export(None)


def test_other_models_are_left_to_optimum(tmp_path: Path) -> None:
    from optimum.exporters import onnx

    folder = tmp_path / "other"
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps({"model_type": "gpt2"}), encoding="utf-8")
    register()
    assert onnx.main_export is not main_export_as_it_was
    with pytest.raises(OSError, match="no file named"):  # transformers looks for weights
        onnx.main_export(str(folder), tmp_path / "out", task=TASK)
