from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from lfm2_deploy.checkpoint import open_checkpoint
from lfm2_deploy.checkpoint.synthetic import SyntheticCheckpoint
from lfm2_deploy.contracts import FloatArray
from lfm2_deploy.errors import SourceError


@pytest.mark.parametrize("model", ["", "tiny-moe", "./absent", "/a/b/c", "a/b/c", "syn:x", "~"])
def test_name_of_no_form_lists_the_forms(
    model: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path / "absent"))
    with pytest.raises(SourceError, match=r"was not found: .*folder, a Hub id .*synthetic:NAME"):
        open_checkpoint(model)


def test_file_is_refused(tmp_path: Path) -> None:
    file = tmp_path / "model.safetensors"
    file.touch()
    with pytest.raises(SourceError, match="is a file: expected an existing folder"):
        open_checkpoint(str(file))


def test_folder_wins_over_hub_id(
    tiny_dense: SyntheticCheckpoint,
    read_all: Callable[..., dict[str, FloatArray]],
    save_model: Callable[..., Path],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    folder = save_model(tiny_dense.raw_config, read_all(tiny_dense), "owner/name")
    monkeypatch.chdir(folder.parent.parent)
    assert open_checkpoint("owner/name").origin.kind == "folder"


def test_home_is_expanded(
    tiny_dense: SyntheticCheckpoint,
    read_all: Callable[..., dict[str, FloatArray]],
    save_model: Callable[..., Path],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    folder = save_model(tiny_dense.raw_config, read_all(tiny_dense))
    monkeypatch.setenv("HOME", str(folder.parent))
    assert open_checkpoint("~/model").origin.name == "model"


@pytest.mark.parametrize("kind", ["folder", "synthetic"])
def test_revision_is_for_the_hub_only(kind: str, tmp_path: Path) -> None:
    model = str(tmp_path) if kind == "folder" else "synthetic:tiny-moe"
    with pytest.raises(SourceError, match="only Hub models have revisions"):
        open_checkpoint(model, revision="main")


def test_import_loads_no_heavy_package() -> None:
    code = (
        "import sys; import lfm2_deploy.checkpoint as c; c.open_checkpoint('synthetic:tiny-moe');"
        "heavy = {'torch', 'onnx', 'onnxruntime', 'huggingface_hub', 'transformers'};"
        "sys.exit(str(heavy & set(sys.modules) or ''))"
    )
    finished = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert finished.stderr.strip() == ""
