"""A prepared copy gives the same numbers, for the very bundle and nothing else."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from lfm2_deploy import api
from lfm2_deploy.bundle import Bundle, open_bundle
from lfm2_deploy.errors import BundleError, DiskFullError, RuntimeUnavailableError
from lfm2_deploy.registry import find_preparer, find_runtime
from runtimes import prepared
from runtimes.prepared import find_prepared, measure_prepared, prepare, remove_prepared

PROMPT = [3, 14, 15, 92, 6, 5, 35]


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(prepared, "find_cache", lambda: tmp_path / "cache")
    return tmp_path / "cache"


@pytest.fixture(scope="module", params=["tiny-dense", "tiny-moe"])
def bundle(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    place = tmp_path_factory.mktemp("prepared") / request.param
    return api.export(f"synthetic:{request.param}", place, precision="int4")


def run(bundle: Bundle) -> list[np.ndarray[tuple[int, ...], np.dtype[np.float32]]]:
    session = find_runtime("ort")(bundle).open(1)
    return [session.prefill([PROMPT]), session.decode([7])]


def test_prepared_copy_is_used_and_gives_the_same_bits(
    bundle: Bundle, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = run(bundle)
    folder = prepare(bundle)
    graph = find_prepared(bundle)
    assert graph is not None
    assert graph.parent == folder
    for a, b in zip(before, run(bundle), strict=True):
        np.testing.assert_array_equal(a, b)
    # It was really this graph that ran: spoilt, it does not load.
    graph.write_bytes(b"x" * graph.stat().st_size)
    with pytest.raises(BundleError, match=r"prepare .* again, or with --remove"):
        run(bundle)


def test_preparing_again_keeps_what_is_there(bundle: Bundle) -> None:
    folder = prepare(bundle)
    before = (folder / "model.onnx.data").stat().st_mtime_ns
    assert prepare(bundle) == folder
    assert (folder / "model.onnx.data").stat().st_mtime_ns == before
    assert measure_prepared(folder) > bundle.manifest.files["model.onnx.data"].size_bytes


def test_copy_that_is_not_whole_is_not_used_and_made_anew(bundle: Bundle) -> None:
    folder = prepare(bundle)
    (folder / "model.onnx.data").write_bytes(b"short")
    assert find_prepared(bundle) is None
    before = run(bundle)
    prepare(bundle)
    assert find_prepared(bundle) is not None
    np.testing.assert_array_equal(run(bundle)[0], before[0])


def test_other_bundle_does_not_use_it(bundle: Bundle, tmp_path: Path) -> None:
    prepare(bundle)
    other = api.export(f"synthetic:{bundle.manifest.model}@1", tmp_path / "x", precision="int4")
    assert find_prepared(other) is None


def test_same_bundle_elsewhere_uses_it(bundle: Bundle, tmp_path: Path) -> None:
    prepare(bundle)
    shutil.copytree(bundle.path, tmp_path / "copy")
    assert find_prepared(open_bundle(tmp_path / "copy")) is not None


def test_other_processor_does_not_use_it(bundle: Bundle, monkeypatch: pytest.MonkeyPatch) -> None:
    prepare(bundle)
    older = SimpleNamespace(cpu="an older one", instructions=("avx2",))
    monkeypatch.setattr(prepared, "describe_machine", lambda: older)
    assert find_prepared(bundle) is None


def test_removed_copy_is_gone(bundle: Bundle, cache: Path) -> None:
    prepare(bundle)
    assert remove_prepared(bundle)
    assert find_prepared(bundle) is None
    assert not remove_prepared(bundle)
    assert not any(entry.is_dir() for entry in (cache / "prepared").iterdir())


def test_no_room_is_told_before_anything_is_written(
    bundle: Bundle, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    usage = SimpleNamespace(free=1000)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage)
    with pytest.raises(DiskFullError, match="GiB free and preparing"):
        prepare(bundle)
    assert [entry.suffix for entry in (cache / "prepared").iterdir()] == [".lock"]


def test_graph_that_cannot_be_loaded_is_told_and_leaves_nothing(
    bundle: Bundle, cache: Path, tmp_path: Path
) -> None:
    shutil.copytree(bundle.path, tmp_path / "copy")
    copy = open_bundle(tmp_path / "copy")
    copy.graph.write_bytes(b"no graph")
    with pytest.raises(BundleError, match="cannot prepare") as caught:
        prepare(copy)
    assert "\n" not in str(caught.value)
    assert not any(entry.is_dir() for entry in (cache / "prepared").iterdir())


def test_record_says_what_it_was_made_of(bundle: Bundle) -> None:
    record = json.loads((prepare(bundle) / "prepared.json").read_text())
    assert record["bundle"] == str(bundle.path.resolve())
    assert record["machine"]["instructions"] is not None


def test_runtime_that_prepares_nothing_says_so() -> None:
    with pytest.raises(RuntimeUnavailableError, match="keeps nothing prepared"):
        find_preparer("reference")
