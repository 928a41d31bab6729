"""What is imported, and when: seen in fresh processes, where nothing is loaded yet."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from lfm2_deploy import export

RUN_A_BUNDLE = """
import sys

for name in ("torch", "onnx", "onnx_ir", "onnxscript", "transformers", "huggingface_hub"):
    sys.modules[name] = None  # importing it now raises ImportError

from lfm2_deploy import open_bundle
from lfm2_deploy.registry import find_runtime

session = find_runtime("ort")(open_bundle(sys.argv[1]), threads=1).open(1, 8)
first = session.prefill([[1, 2, 3]])
second = session.decode([int(first[0].argmax())])
assert first.shape == second.shape == (1, 512)
print("ran", *session.lengths)
"""


def run_python(code: str, *arguments: object) -> str:
    """What a fresh interpreter prints."""
    command = [sys.executable, "-c", code, *map(str, arguments)]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=60)
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("architecture") / "moe"
    return export("synthetic:tiny-moe", out, precision="fp32").path


@pytest.mark.parametrize(
    ("code", "heavy"),
    [
        ("import lfm2_deploy", {"torch", "onnxruntime", "onnx", "numpy"}),
        ("from lfm2_deploy import load, export, open_bundle", {"torch", "onnxruntime", "onnx"}),
        ("import runtimes.ort", {"torch", "onnx", "onnx_ir", "transformers"}),
    ],
)
def test_import_does_not_load(code: str, heavy: set[str]) -> None:
    loaded = run_python(f"{code}; import sys; print(*sys.modules)").split()
    assert "lfm2_deploy" in loaded
    assert heavy.isdisjoint(loaded)


def test_bundle_runs_without_what_made_it(bundle: Path) -> None:
    assert run_python(RUN_A_BUNDLE, bundle) == "ran 4"
