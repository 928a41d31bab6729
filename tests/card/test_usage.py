"""The code in a card runs as it stands."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from lfm2_deploy import export, open_bundle
from lfm2_deploy.card.usage import Place, list_usages
from lfm2_deploy.demo import DEMO_MODEL


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The demo model in the folder that its card names."""
    place = tmp_path_factory.mktemp("used") / "lfm2-demo-9m-cpu-int4"
    return export(str(DEMO_MODEL), place, canary=False).path


@pytest.mark.parametrize("reader", ["lfm2-deploy", "onnxruntime-genai"])
def test_python_of_a_reader_speaks(bundle: Path, reader: str) -> None:
    usages = {u.reader: u for u in list_usages(open_bundle(bundle), Place(bundle.name))}
    code = dict(usages[reader].blocks)["python"]
    if reader == "onnxruntime-genai":
        pytest.importorskip("onnxruntime_genai", reason="NOT RUN: onnxruntime-genai is absent")
    done = subprocess.run(
        [sys.executable, "-c", code],
        cwd=bundle.parent,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert len(done.stdout.split()) > 3


def test_repository_is_where_every_reader_looks(bundle: Path) -> None:
    place = Place("whales", "somebody/whales")
    for usage in list_usages(open_bundle(bundle), place):
        text = "\n".join(code for _, code in usage.blocks)
        assert "./" not in text
        assert "whales" in text or "OpenAI" in text
