"""`lfm2-deploy check`, and how `generate` and `inspect` speak of a canary."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from lfm2_deploy.bundle import open_bundle
from lfm2_deploy.canary import check
from runtimes import ort_session


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setenv("LOCALAPPDATA", str(tmp_path))
    monkeypatch.delenv("LFM2_DEPLOY_REMEMBER")
    monkeypatch.delenv("LFM2_DEPLOY_CANARY")
    return tmp_path


@pytest.fixture
def broken(monkeypatch: pytest.MonkeyPatch) -> None:
    """A device that gives the logits of other tokens."""
    decode = ort_session.OrtSession.decode

    def garble(self: Any, tokens: Any) -> Any:
        return np.ascontiguousarray(decode(self, tokens)[:, ::-1])

    monkeypatch.setattr(ort_session.OrtSession, "decode", garble)


def test_check_tells_figures_and_passes(run: Callable, bundle: Path) -> None:
    result = run("check", bundle)
    assert result.exit_code == 0, result.stderr
    for words in ("passed", "onnxruntime", "of their spread", "text", "append", "int8"):
        assert words in result.stdout


def test_check_in_json_holds_every_call(run: Callable, bundle: Path) -> None:
    record = json.loads(run("check", bundle, "--json").stdout)
    assert record["outcome"] == "passed"
    assert record["runtime"] == "ort"
    assert record["calls"] == len(record["readings"]) == 35
    assert record["error"] < record["limit"]
    assert record["readings"][0].keys() >= {"row", "kind", "error", "token", "expected", "margin"}


@pytest.mark.usefixtures("broken")
def test_check_of_a_broken_device_ends_with_1(run: Callable, bundle: Path) -> None:
    result = run("check", bundle)
    assert result.exit_code == 1
    assert "failed: row" in result.stdout
    assert "nearly tied" in result.stdout
    assert "may be damaged" in result.stderr
    assert f"`lfm2-deploy inspect {bundle} --check`" in result.stderr
    assert "driver" not in result.stderr
    assert json.loads(run("check", bundle, "--json").stdout)["outcome"] == "failed"


@pytest.mark.usefixtures("broken")
def test_broken_device_writes_no_text_unless_it_is_asked_to(
    run: Callable, fails: Callable, bundle: Path
) -> None:
    result = run("generate", bundle, "Once", "--max-new-tokens", 3)
    fails(result, "does not compute this model", "--canary off loads it")
    result = run("generate", bundle, "Once", "--max-new-tokens", 3, "--canary", "off")
    assert result.exit_code == 0


def test_generate_checks_once(run: Callable, bundle: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[int] = []
    run_canary = check.run_canary
    monkeypatch.setattr(check, "run_canary", lambda *given: calls.append(1) or run_canary(*given))
    for _ in range(2):
        assert run("generate", bundle, "Once", "--max-new-tokens", 2).exit_code == 0
    assert len(calls) == 1
    assert run("generate", bundle, "Once", "--max-new-tokens", 2, "--canary", "always")
    assert len(calls) == 2


def test_unknown_mode_is_a_matter_of_usage(run: Callable, bundle: Path) -> None:
    result = run("generate", bundle, "Once", "--canary", "maybe")
    assert result.exit_code == 2
    for word in ("'maybe'", "auto", "always", "off"):
        assert word in result.stderr


def test_inspect_tells_what_is_remembered(run: Callable, bundle: Path) -> None:
    assert "not run here yet" in run("inspect", bundle).stdout
    assert json.loads(run("inspect", bundle, "--json").stdout)["canary"] == []
    run("check", bundle)
    assert "passed on cpu (ort)" in run("inspect", bundle).stdout
    (found,) = json.loads(run("inspect", bundle, "--json").stdout)["canary"]
    assert found["outcome"] == "passed"


def test_bundle_without_canary_is_named_so(run: Callable, fails: Callable, tmp_path: Path) -> None:
    path = tmp_path / "bundle"
    assert run("export", "synthetic:tiny-dense", path, "--no-canary").exit_code == 0
    assert "canary.json" not in open_bundle(path).manifest.files
    fails(run("check", path), "has no canary to check", "export the model again")
    assert "export it again to have one" in run("inspect", path).stdout
    assert json.loads(run("inspect", path, "--json").stdout)["canary"] is None
