"""Every sample runs as its docstring says, on the demo model."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

import lfm2_deploy
from lfm2_deploy.demo import DEMO_MODEL

SAMPLES = Path(__file__).parent.parent / "samples"
ARGUMENTS = {
    "generate.py": ["It was"],
    "stream_chat.py": ["He went up to the city."],
    "batch.py": ["It was", "The Secretary of the Treasury"],
}


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("samples") / "demo"
    return lfm2_deploy.export(str(DEMO_MODEL), out, precision="int4").path


def test_samples_folder_has_arguments_for_each_file() -> None:
    assert {file.name for file in SAMPLES.glob("*.py")} == set(ARGUMENTS)


@pytest.mark.parametrize("name", sorted(ARGUMENTS))
def test_sample_on_demo_model_prints_text(name: str, bundle: Path) -> None:
    assert len((SAMPLES / name).read_text().splitlines()) <= 40
    command = [sys.executable, str(SAMPLES / name), str(bundle), *ARGUMENTS[name]]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=120)
    assert done.returncode == 0, done.stderr
    assert len(done.stdout.split()) >= 5
