"""`lfm2-deploy import`."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from lfm2_deploy.demo import DEMO_MODEL

DATA = Path(__file__).parents[1] / "importing" / "data"
CHECKPOINT = DATA / "checkpoint"


@pytest.fixture(scope="module")
def imported(run: Callable, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The graph of older builders, with a tokenizer beside it. Treat it as read-only."""
    root = tmp_path_factory.mktemp("import")
    shutil.copytree(DATA / "genai-0.14", root / "source")
    for name in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copy(DEMO_MODEL / name, root / "source")
    result = run("import", root / "source", root / "bundle", "--against", CHECKPOINT)
    assert result.exit_code == 0, result.stderr
    assert "made by onnxruntime-genai" in result.stdout
    assert "it has no canary" in result.stderr
    return root / "bundle"


def test_inspect_tells_where_a_graph_came_from_and_what_it_cannot_do(
    run: Callable, imported: Path
) -> None:
    text = run("inspect", imported).stdout
    assert "onnx graph model.onnx, made by onnxruntime-genai" in text
    assert "rows cannot be ragged" in text
    assert "none: nothing says what an imported graph's weights should give" in text
    record = json.loads(run("inspect", imported, "--json").stdout)["imported"]
    assert record["traits"] == ["all_logits", "one_row", "no_proposals"]


def test_check_and_prepare_say_why_not(run: Callable, fails: Callable, imported: Path) -> None:
    fails(run("check", imported), "was imported and has no canary to check")
    fails(run("prepare", imported), "there is nothing to prepare")


def test_inspect_lists_tensors_by_the_models_own_names(run: Callable, imported: Path) -> None:
    assert "model.layers.1.conv.in_proj.weight" in run("inspect", imported, "--tensors").stdout


def test_lint_looks_at_an_imported_graph(run: Callable, imported: Path) -> None:
    result = run("lint", imported)
    assert result.exit_code == 0, result.stderr
    assert "statically checked for cpu" in result.stdout + result.stderr


def test_bench_of_an_ir_leaves_out_a_bound_that_is_not_known(run: Callable, tmp_path: Path) -> None:
    assert run("import", DATA / "optimum-intel", tmp_path / "ir").exit_code == 0
    result = run(
        "bench", tmp_path / "ir", "--contexts", "8", "--decode", "2", "--rounds", "1", "--json"
    )
    assert result.exit_code == 0, result.stderr
    (speed,) = next(iter(json.loads(result.stdout)["bundles"].values()))["speeds"]
    assert speed["bound"] is None
    assert speed["decode"] > 0


def test_default_place_is_named_after_source_and_variant(
    run: Callable, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    record = json.loads(run("import", DATA / "optimum-intel", "--json").stdout)
    assert record["imported"]["kind"] == "openvino"
    assert (tmp_path / "optimum-intel-imported" / "manifest.json").is_file()


def test_folder_without_an_export_is_one_line(
    run: Callable, fails: Callable, tmp_path: Path
) -> None:
    fails(run("import", tmp_path, tmp_path / "b"), "holds no export that can be imported")
