"""A program that ends in the midst of an answer ends quietly."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

import lfm2_deploy
from lfm2_deploy.demo import DEMO_MODEL

LEAVE_WHILE_ANSWERING = """
import sys
from lfm2_deploy import Engine

engine = Engine.load(sys.argv[1])
stream = iter(engine.stream("It was", ignore_eos=True, max_new_tokens=1900))
next(stream)
"""


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return lfm2_deploy.export(str(DEMO_MODEL), tmp_path_factory.mktemp("exit") / "demo").path


def test_engine_that_was_not_closed_ends_before_python_does(bundle: Path) -> None:
    command = [sys.executable, "-c", LEAVE_WHILE_ANSWERING, str(bundle)]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=60)
    assert (done.returncode, done.stderr) == (0, "")
