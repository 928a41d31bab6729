"""The comparison with an old onnxruntime-genai, run with the one that is installed."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path

import pytest

from lfm2_deploy.api import export
from lfm2_deploy.bundle import Bundle

SCRIPT = Path(__file__).parents[2] / "scripts" / "check_genai_legacy.py"


@pytest.fixture(scope="module")
def bundle(checkpoints: Mapping[str, Path], tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    place = tmp_path_factory.mktemp("legacy") / "bundle"
    return export(str(checkpoints["moe"]), place, precision="fp16", io=["genai-legacy"])


def run(*words: object) -> tuple[int, str]:
    done = subprocess.run(
        [sys.executable, str(SCRIPT), *map(str, words)], capture_output=True, text=True, check=False
    )
    return done.returncode, done.stdout


def test_tokens_are_compared_and_a_difference_is_found(bundle: Bundle, tmp_path: Path) -> None:
    file = tmp_path / "tokens.json"
    assert run("record", file, bundle.path) == (0, "")
    code, told = run("check", file, bundle.path)
    assert code == 0
    assert "OK: bundle fp16: the first 48 of 48 greedy tokens are ours" in told
    recorded = json.loads(file.read_text())
    recorded["bundle"]["tokens"][3] ^= 1
    file.write_text(json.dumps(recorded))
    code, told = run("check", file, bundle.path)
    assert code == 1
    assert "DIFFERENT: bundle fp16: the first 3 of 48" in told
