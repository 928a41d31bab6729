"""`lint`: what it reads, what it says, and how it ends."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Callable, Sequence
from itertools import pairwise
from pathlib import Path

import onnx
import pytest
from onnx import TensorProto, helper
from typer.testing import Result

Run = Callable[..., Result]
Fails = Callable[..., None]


def save_graph(path: Path, op: str = "Sigmoid", count: int = 1, domain: str = "") -> Path:
    """A chain of one operator."""
    names = [f"v{number}" for number in range(count + 1)]
    nodes = [
        helper.make_node(op, [before], [after], name=f"node{number}", domain=domain)
        for number, (before, after) in enumerate(pairwise(names))
    ]
    ends = [helper.make_tensor_value_info(one, TensorProto.FLOAT, [2]) for one in names]
    graph = helper.make_graph(nodes, "chain", [ends[0]], [ends[-1]])
    opsets = [helper.make_opsetid("", 21), helper.make_opsetid("com.microsoft", 1)]
    path.parent.mkdir(parents=True, exist_ok=True)
    onnx.save(helper.make_model(graph, opset_imports=opsets, ir_version=10), path)
    return path


def test_bundle_is_clean_of_its_own_target(run: Run, bundle: Path) -> None:
    result = run("lint", bundle)
    assert result.exit_code == 0, result.stderr
    assert result.stdout.splitlines()[-1] == "clean: statically checked for cpu, not run there"


def test_bundle_for_another_target_fails_with_rule_and_source(run: Run, bundle: Path) -> None:
    result = run("lint", bundle, "--target", "DirectML")
    assert result.exit_code == 1
    assert "runs elsewhere  directml/not-registered" in result.stdout
    assert "6 x com.microsoft:QMoE: no kernel of this operator" in result.stdout
    assert "OperatorRegistration.cpp" in result.stdout
    last = result.stdout.splitlines()[-1]
    assert "statically checked for directml, not run there" in last
    assert "bound to one buffer" in result.stderr


def test_equal_findings_are_one_line_with_the_first_names(run: Run, tmp_path: Path) -> None:
    path = save_graph(tmp_path / "model.onnx", "BiasAdd", 40, "com.microsoft")
    result = run("lint", path, "--target", "cpu")
    lines = [line for line in result.stdout.splitlines() if "BiasAdd" in line]
    assert len(lines) == 1
    assert "40 x com.microsoft:BiasAdd" in lines[0]
    assert lines[0].endswith("node0, node1, node2 ...")
    assert "1 finding on 40 nodes (refused)" in result.stdout


def test_remarks_do_not_fail_and_are_shown_on_request(run: Run, bundle: Path) -> None:
    hidden = run("lint", bundle, "--target", "webgpu")
    shown = run("lint", bundle, "--target", "webgpu", "--remarks")
    assert "webgpu/int64" not in hidden.stdout
    assert "remarks: --remarks shows them" in hidden.stderr
    assert "remark  webgpu/int64" in shown.stdout
    assert hidden.stdout.splitlines()[-1] == shown.stdout.splitlines()[-1]


def test_json_holds_everything_and_nothing_else(run: Run, bundle: Path) -> None:
    result = run("lint", bundle, "--target", "directml", "--json")
    assert result.exit_code == 1
    record = json.loads(result.stdout)
    assert (record["target"], record["clean"], record["checked"]) == (
        "directml",
        False,
        "statically",
    )
    first = record["findings"][0]
    assert set(first) >= {
        "rule",
        "outcome",
        "operator",
        "nodes",
        "seen",
        "expected",
        "advice",
        "source",
    }


def test_folder_of_other_tools_is_searched(run: Run, tmp_path: Path) -> None:
    save_graph(tmp_path / "onnx" / "model_q4.onnx")
    save_graph(tmp_path / "onnx" / "model_fp16.onnx")
    (tmp_path / "config.json").write_text("{}")
    result = run("lint", tmp_path, "--target", "webgpu", "--json")
    assert result.exit_code == 0
    assert json.loads(result.stdout)["graphs"] == ["model_fp16.onnx", "model_q4.onnx"]


def test_unknown_target_lists_those_there_are(run: Run, fails: Fails, bundle: Path) -> None:
    result = run("lint", bundle, "--target", "cuda")
    known = ("directml", "webgpu", "npu", "igpu", "openvino-cpu", "cpu", "qnn")
    fails(result, "'cuda'", *known, code=2)


def test_graph_without_target_asks_for_one(run: Run, fails: Fails, tmp_path: Path) -> None:
    path = save_graph(tmp_path / "model.onnx")
    fails(run("lint", path), "not a bundle", "--target")


def test_nothing_there_refused(run: Run, fails: Fails, tmp_path: Path) -> None:
    fails(run("lint", tmp_path / "absent", "--target", "cpu"), "absent does not exist")


@pytest.mark.parametrize(
    "content", [b"\xff" * 64, b"version https://git-lfs.github.com/spec/v1\n", b""]
)
def test_unreadable_graph_refused(run: Run, fails: Fails, tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "model.onnx"
    path.write_bytes(content)
    fails(run("lint", path, "--target", "cpu"), "model.onnx")


def test_xml_that_is_no_ir_refused(run: Run, fails: Fails, tmp_path: Path) -> None:
    path = tmp_path / "model.xml"
    path.write_text("<html></html>")
    fails(run("lint", path, "--target", "igpu"), "no OpenVINO IR", "<net>")


def test_empty_folder_refused(run: Run, fails: Fails, tmp_path: Path) -> None:
    fails(run("lint", tmp_path, "--target", "directml"), "expected .onnx, found no files")


def test_ir_for_a_target_of_onnx_refused(run: Run, fails: Fails, tmp_path: Path) -> None:
    path = tmp_path / "openvino_model.xml"
    path.write_text("<net><layers/></net>")
    fails(run("lint", path, "--target", "directml"), "expected .onnx, found .xml")


def test_lint_needs_onnx_and_nothing_else_of_the_exporter(
    program: Sequence[str], tmp_path: Path
) -> None:
    path = save_graph(tmp_path / "model.onnx")
    blocked = ("torch", "onnx_ir", "onnxscript", "onnxruntime", "openvino", "transformers")
    code = f"import sys; sys.modules.update(dict.fromkeys({blocked!r})); {program[2]}"
    command = [program[0], program[1], code, "lint", str(path), "--target", "directml"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "clean: statically checked" in done.stdout
