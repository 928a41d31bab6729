"""Bundles made once, and ways to run the command line on them."""

from __future__ import annotations

import os
import shutil
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest
from typer.testing import CliRunner, Result

# As `cli.main` sets it: otherwise torch's threads spin, and a busy machine takes minutes.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

from lfm2_deploy.cli import app
from lfm2_deploy.demo import DEMO_MODEL
from lfm2_deploy.generate import LanguageModel

Run = Callable[..., Result]


def _run(*args: object, stdin: str | bytes | None = None) -> Result:
    return CliRunner().invoke(app, [str(arg) for arg in args], input=stdin)


@pytest.fixture(scope="session")
def run() -> Run:
    """Run a command line in this process; nothing is a terminal there."""
    return _run


@pytest.fixture(scope="session")
def program() -> Sequence[str]:
    """The words that start the program in a process of its own."""
    return (sys.executable, "-c", "from lfm2_deploy.cli import main; raise SystemExit(main())")


@pytest.fixture(scope="session")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The demo model in int4. Treat it as read-only."""
    path = tmp_path_factory.mktemp("bundles") / "demo"
    result = _run("export", DEMO_MODEL, path)
    assert result.exit_code == 0, result.stderr
    return path


@pytest.fixture(scope="session")
def random_bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A random dense model in fp32, without a tokenizer. Treat it as read-only."""
    path = tmp_path_factory.mktemp("bundles") / "random"
    result = _run("export", "synthetic:tiny-dense", path, "--precision", "fp32")
    assert result.exit_code == 0, result.stderr
    return path


@pytest.fixture
def copied_bundle(bundle: Path, tmp_path: Path) -> Path:
    """A copy of the demo model's bundle, to damage."""
    return shutil.copytree(bundle, tmp_path / "copied")


@pytest.fixture(scope="session")
def model(bundle: Path) -> LanguageModel:
    """The demo model's bundle, loaded."""
    from lfm2_deploy.api import load

    return load(bundle, threads=1)


def assert_fails(result: Result, *words: str, code: int = 1) -> None:
    """One error line on stderr that holds the words, and nothing on stdout."""
    assert result.exit_code == code
    lines = [line for line in result.stderr.splitlines() if not line.endswith(" ...")]
    assert len(lines) == 1, result.stderr
    assert lines[0].startswith("error: ")
    for word in words:
        assert word in lines[0]
    assert result.stdout == ""


@pytest.fixture(scope="session")
def fails() -> Callable[..., None]:
    """`assert_fails`, for tests."""
    return assert_fails
