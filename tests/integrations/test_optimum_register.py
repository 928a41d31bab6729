"""The file that optimum-cli finds, where there is nothing for it to find."""

from __future__ import annotations

import importlib.util
import runpy
from pathlib import Path

import pytest

FILE = Path(__file__).parents[2] / "optimum/commands/register/register_lfm2_deploy.py"


def _find(name: str) -> bool:
    try:
        return importlib.util.find_spec(name) is not None
    except ModuleNotFoundError:
        return False


@pytest.mark.skipif(_find("optimum.commands.export.onnx"), reason="optimum-onnx is installed")
def test_without_optimum_onnx_nothing_is_registered_and_nothing_fails() -> None:
    assert runpy.run_path(str(FILE))["REGISTER_COMMANDS"] == []


def test_folder_is_a_namespace_that_others_share() -> None:
    """An `__init__.py` in any of the three folders would hide every other package's files."""
    assert not list(FILE.parents[2].rglob("__init__.py"))
