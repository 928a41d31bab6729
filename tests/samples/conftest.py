"""A bundle of the demo model for the samples to run on."""

from __future__ import annotations

from pathlib import Path

import pytest

import lfm2_deploy
from lfm2_deploy.demo import DEMO_MODEL


@pytest.fixture(scope="session")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The demo model in int4, for the CPU."""
    out = tmp_path_factory.mktemp("samples") / "demo"
    return lfm2_deploy.export(str(DEMO_MODEL), out, precision="int4").path
