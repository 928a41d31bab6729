"""Commands that take a checkpoint take a GGUF file."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from lfm2_deploy.checkpoint.synthetic import open_synthetic
from lfm2_deploy.compare.subjects import is_model, read_subject
from lfm2_deploy.errors import GenerationError

from ..gguf_files import write_gguf  # noqa: TID252


@pytest.fixture(scope="module")
def file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_gguf(open_synthetic("tiny-moe"), tmp_path_factory.mktemp("gguf") / "model.gguf")


def test_plan_and_inspect_read_the_metadata(run: Callable, file: Path) -> None:
    planned = run("plan", file, "--ram", "8GB", "--bandwidth", "10", "--json")
    assert planned.exit_code == 0, planned.stderr
    same = run("plan", "synthetic:tiny-moe", "--ram", "8GB", "--bandwidth", "10", "--json")
    assert json.loads(planned.stdout)["precisions"] == json.loads(same.stdout)["precisions"]
    told = run("inspect", file)
    assert "a file named model.gguf" in told.stdout
    assert "assumed: norm_topk_prob = true" in told.stderr


def test_compare_takes_it_as_a_model_and_as_a_reference(file: Path, tmp_path: Path) -> None:
    assert is_model(file)
    assert is_model("LiquidAI/LFM2-350M-GGUF:Q4_0")
    assert not is_model(tmp_path / "absent.gguf")
    subject = read_subject(f"torch:{file}")
    assert (subject.kind, subject.model) == ("torch", str(file))
    with pytest.raises(GenerationError, match="does not exist"):
        read_subject("torch:folder/absent.gguf")
    with pytest.raises(GenerationError, match="does not exist"):
        read_subject(f"transformers:{file}")


def test_damaged_file_is_one_line(run: Callable, tmp_path: Path) -> None:
    damaged = tmp_path / "damaged.gguf"
    damaged.write_bytes(b"GGUF\x03")
    result = run("plan", damaged)
    assert result.exit_code == 1
    (line,) = result.stderr.splitlines()
    assert line.startswith(f"error: {damaged} has a corrupt or truncated header")
