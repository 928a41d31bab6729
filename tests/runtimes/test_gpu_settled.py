"""What was found of a GPU's calls is taken from memory until bundle, device or driver change."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from lfm2_deploy.bundle import Bundle
from lfm2_deploy.registry import find_runtime
from runtimes.gpu_model import GpuRuntime
from runtimes.gpu_settled import settle

KEY = {"bundle": "b", "device": "gpu", "driver": "1"}


@pytest.fixture
def runtime(bundle_of: Callable[..., Bundle]) -> GpuRuntime:
    loaded: GpuRuntime = find_runtime("webgpu")(bundle_of("dense", "fp32", "webgpu"), device="cpu")
    return loaded


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setenv("LOCALAPPDATA", str(tmp_path))
    monkeypatch.delenv("LFM2_DEPLOY_REMEMBER")
    return tmp_path


def _settle(runtime: GpuRuntime, key: dict[str, str]) -> bool:
    """Whether it was found out anew; finds pieces of 16 and no captures."""
    runtime.captures, runtime.prompt_chunk = True, None
    runtime.info = replace(runtime.info, notes=("known",))
    tried = []

    def find_out() -> None:
        tried.append(True)
        runtime.captures, runtime.prompt_chunk = False, 16
        runtime.info = replace(runtime.info, notes=(*runtime.info.notes, "pieces of 16"))

    settle(runtime, key, find_out)
    assert (runtime.captures, runtime.prompt_chunk) == (False, 16)
    assert runtime.info.notes == ("known", "pieces of 16")
    return bool(tried)


def test_calls_are_tried_once_for_each_driver(runtime: GpuRuntime) -> None:
    assert _settle(runtime, KEY)
    assert not _settle(runtime, KEY)
    assert _settle(runtime, {**KEY, "driver": "2"})
    assert _settle(runtime, {**KEY, "bundle": "c"})


def test_switch_that_forbids_recording_is_another_case(
    runtime: GpuRuntime, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert _settle(runtime, KEY)
    monkeypatch.setenv("LFM2_DEPLOY_GRAPH_CAPTURE", "0")
    assert _settle(runtime, KEY)


@pytest.mark.parametrize(
    ("right", "wrong"),
    [("16", "-1"), ("16", "true"), ("16", '"x"'), ('"pieces of 16"', "7"), ("false", "0")],
)
def test_damaged_memory_is_tried_again(
    runtime: GpuRuntime, cache: Path, right: str, wrong: str
) -> None:
    assert _settle(runtime, KEY)
    (file,) = cache.glob("**/*.json")
    start, finding = file.read_text().split('"finding"')
    file.write_text(f'{start}"finding"{finding.replace(right, wrong, 1)}')
    assert _settle(runtime, KEY)
