"""Intel's NPU compiler: what its log says, and, where it is here, what it makes of our graphs."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from lfm2_deploy.bundle import Bundle
from lfm2_deploy.contracts import ignore_progress
from lfm2_deploy.errors import BundleError, RuntimeUnavailableError
from lfm2_deploy.static_graphs import NPU_PLATFORMS
from runtimes.npu_compiler.bundles import _read_verdict, compile_graphs
from runtimes.npu_compiler.compiler import find_compiler, read_log
from runtimes.npu_compiler.wine import WineCompiler

GRAPH = Path("decode.onnx")
LOG = "COMPILER 524292\r\n[INFO] Estimated inference latency: 120.5 us\r\nOK\r\n"


def missing_compiler() -> str:
    try:
        find_compiler()
    except RuntimeUnavailableError as error:
        return str(error)
    return ""


MISSING = missing_compiler()
needs_compiler = pytest.mark.skipif(bool(MISSING), reason=f"NOT RUN: {MISSING}")


def test_log_tells_version_estimate_and_size(tmp_path: Path) -> None:
    blob = tmp_path / "blob"
    blob.write_bytes(b"12345")
    verdict = read_log(LOG, GRAPH, "4000", blob, "2026.4.1", 3.0)
    assert (verdict.compiler, verdict.estimated_us, verdict.blob_bytes) == ("8.4", 120.5, 5)


def test_functions_of_one_graph_are_added_up(tmp_path: Path) -> None:
    blob = tmp_path / "blob"
    blob.write_bytes(b"1")
    log = LOG.replace("OK", "[INFO] Estimated inference latency: 9.5 us\nOK")
    assert read_log(log, GRAPH, "4000", blob, "2026.4.1", 3.0).estimated_us == 130.0


@pytest.mark.parametrize(
    ("log", "reason"),
    [
        ("[ERROR] 21:38 [vpux-compiler] Tiling dim is wrong\nFAIL compile: x\n", "Tiling dim"),
        ("FAIL read: no such file\n", "FAIL read: no such file"),
        ("", "it ended without a word"),
        (LOG, "OK"),  # a log that says so without a blob
    ],
)
def test_failure_is_told_with_its_reason(log: str, reason: str, tmp_path: Path) -> None:
    with pytest.raises(BundleError) as caught:
        read_log(log, GRAPH, "4000", tmp_path / "blob", "2026.4.1", 3.0)
    assert "refuses decode.onnx for platform 4000" in str(caught.value)
    assert reason in str(caught.value)


@pytest.mark.parametrize("text", ["", '{"platform": "40', "[]", '{"platform": "4000"}'])
def test_verdict_that_was_cut_off_is_none(text: str, tmp_path: Path) -> None:
    note = tmp_path / "decode.blob.json"
    note.write_text(text)
    assert _read_verdict(note) is None
    assert _read_verdict(tmp_path / "absent") is None


def test_missing_tools_are_named_with_the_command(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("shutil.which", lambda tool: None)
    missing = WineCompiler.missing()
    assert "it needs wine and x86_64-w64-mingw32-gcc-posix: sudo apt install" in missing


def test_compiler_that_is_not_set_up_says_how(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr("shutil.which", lambda tool: f"/usr/bin/{tool}")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert "lfm2-deploy compile --set-up" in WineCompiler.missing()


@needs_compiler
@pytest.mark.parametrize(("kind", "platforms"), [("dense", NPU_PLATFORMS), ("moe", ("4000",))])
def test_every_graph_is_taken_by_intels_compiler(
    kind: str, platforms: tuple[str, ...], bundle_of: Callable[..., Bundle]
) -> None:
    bundle = bundle_of(kind, "int4", "npu")
    graphs = bundle.manifest.graphs
    done = list(compile_graphs(bundle.path, graphs, platforms, ignore_progress, alike=False))
    assert [one.refusal for one in done] == [None] * len(done)
    assert {one.graph for one in done} >= {"prefill", "decode"}
    for one in done:
        assert one.verdict is not None
        assert one.verdict.estimated_us
        assert one.verdict.blob_bytes > 0
