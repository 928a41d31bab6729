"""The demo model, as a bundle and as lm-evaluation-harness loads it itself."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from lfm2_deploy import export, load
from lfm2_deploy.demo import DEMO_MODEL
from lfm2_deploy.generate import LanguageModel


@pytest.fixture(scope="session")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The demo model in float32. Treat it as read-only."""
    place = tmp_path_factory.mktemp("bundles") / "demo"
    return export(str(DEMO_MODEL), place, precision="fp32").path


@pytest.fixture(scope="session")
def model(bundle: Path) -> LanguageModel:
    """The same, loaded."""
    return load(bundle, threads=1)


@pytest.fixture(scope="session")
def hugging_face() -> Any:
    """The demo's checkpoint in the harness's own Hugging Face backend, one row at a time."""
    pytest.importorskip("lm_eval", reason="not run: lm-eval is not installed")
    from lm_eval.models.huggingface import HFLM

    return HFLM(pretrained=str(DEMO_MODEL), dtype="float32", device="cpu", batch_size=1)


@pytest.fixture
def ours(model: LanguageModel) -> Any:
    """The bundle as the harness sees it."""
    pytest.importorskip("lm_eval", reason="not run: lm-eval is not installed")
    from lfm2_deploy.contracts import ignore_progress
    from lfm2_deploy.evaluation.adapter import HarnessModel

    return HarnessModel(model, "demo", 1, ignore_progress)
