"""An export that was interrupted goes on, and gives the same bytes."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from lfm2_deploy import api
from lfm2_deploy.bundle import Bundle
from lfm2_deploy.demo import DEMO_MODEL
from lfm2_deploy.errors import BundleError, ResumeError
from lfm2_deploy.unfinished import find_unfinished, journal_of

MODEL = "synthetic:tiny-moe"
# Dies at the 20th job, as by power button; every finished job is journalled at once.
DYING = """
import os, signal, sys
import exporters.encoding as encoding, exporters.journal as journal
from lfm2_deploy import api
journal._SECONDS = 0.0
run, count = encoding.run_job, iter(range(10**6))
def run_or_die(*args):
    if next(count) == 20:
        os.kill(os.getpid(), signal.SIGKILL)
    return run(*args)
encoding.run_job = run_or_die
api.export(sys.argv[1], sys.argv[2], precision="int4")
"""


def read_all(folder: Path) -> dict[str, bytes]:
    return {file.name: file.read_bytes() for file in folder.iterdir()}


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    return api.export(MODEL, tmp_path_factory.mktemp("whole") / "bundle", precision="int4")


@pytest.fixture
def interrupted(tmp_path: Path) -> Path:
    """The place of an export that was stopped in the middle."""
    place = tmp_path / "bundle"

    def interrupt(what: str, done: int, total: int) -> None:
        if what == "writing weights" and done > total / 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        api.export(MODEL, place, precision="int4", progress=interrupt)
    return place


@pytest.mark.skipif(sys.platform == "win32", reason="SIGKILL")
def test_killed_export_is_no_bundle_and_goes_on_to_the_same_bytes(
    whole: Bundle, tmp_path: Path
) -> None:
    place = tmp_path / "bundle"
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
    words = [sys.executable, "-c", DYING, MODEL, str(place)]
    done = subprocess.run(words, env=environment, capture_output=True, timeout=120)
    assert done.returncode == -signal.SIGKILL
    assert not place.exists()
    assert find_unfinished(place) is not None
    counted: list[int] = []

    def count(what: str, done: int, total: int) -> None:
        if what == "writing weights":
            counted.append(done)

    api.export(MODEL, place, precision="int4", resume=True, progress=count)
    assert counted[0] > 0  # it did go on, and not begin again
    assert read_all(place) == read_all(whole.path)
    assert [entry.name for entry in tmp_path.iterdir()] == ["bundle"]


def test_interrupted_export_goes_on_to_the_same_bytes(whole: Bundle, interrupted: Path) -> None:
    assert not interrupted.exists()
    api.export(MODEL, interrupted, precision="int4", resume=True)
    assert read_all(interrupted) == read_all(whole.path)
    assert [entry.name for entry in interrupted.parent.iterdir()] == ["bundle"]


def test_without_resume_it_starts_afresh(whole: Bundle, interrupted: Path) -> None:
    scratch = find_unfinished(interrupted)
    assert scratch is not None
    (scratch / "model.onnx.data").write_bytes(b"spoilt")
    api.export(MODEL, interrupted, precision="int4")
    assert read_all(interrupted) == read_all(whole.path)


@pytest.mark.parametrize(
    "other", [{"precision": "int8"}, {"context_length": 77}, {"model": f"{MODEL}@1"}]
)
def test_what_another_export_left_is_refused_and_kept(
    interrupted: Path, other: dict[str, str]
) -> None:
    scratch = find_unfinished(interrupted)
    assert scratch is not None
    before = read_all(scratch)
    wanted = {"model": MODEL, "precision": "int4", **other}
    with pytest.raises(ResumeError, match="without --resume"):
        api.export(**wanted, out=interrupted, resume=True)
    assert read_all(scratch) == before
    assert journal_of(scratch).is_file()


def test_a_weights_file_that_was_tampered_with_is_written_anew(
    whole: Bundle, interrupted: Path
) -> None:
    scratch = find_unfinished(interrupted)
    assert scratch is not None
    (scratch / "model.onnx.data").write_bytes(b"cut short")
    api.export(MODEL, interrupted, precision="int4", resume=True)
    assert read_all(interrupted) == read_all(whole.path)


def test_resume_with_nothing_to_resume_just_exports(whole: Bundle, tmp_path: Path) -> None:
    api.export(MODEL, tmp_path / "bundle", precision="int4", resume=True)
    assert read_all(tmp_path / "bundle") == read_all(whole.path)


def test_a_second_export_to_the_same_place_is_refused_while_one_runs(tmp_path: Path) -> None:
    place, refused = tmp_path / "bundle", []

    def export_again(what: str, done: int, total: int) -> None:
        if what == "writing weights" and not refused:
            with pytest.raises(BundleError, match="another process is writing") as caught:
                api.export(MODEL, place, precision="int4")
            refused.append(caught)

    api.export(MODEL, place, precision="int4", progress=export_again)
    assert refused
    assert [entry.name for entry in tmp_path.iterdir()] == ["bundle"]


def test_changed_folder_is_not_gone_on_with(
    tmp_path: Path,
) -> None:
    model = tmp_path / "model"
    shutil.copytree(DEMO_MODEL, model)
    place = tmp_path / "bundle"

    def interrupt(what: str, done: int, total: int) -> None:
        if what == "writing weights" and done:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        api.export(str(model), place, precision="int4", progress=interrupt)
    os.utime(model / "model.safetensors")
    with pytest.raises(ResumeError):
        api.export(str(model), place, precision="int4", resume=True)


def test_export_that_was_killed_before_its_first_line_begins_anew(
    whole: Bundle, interrupted: Path
) -> None:
    scratch = find_unfinished(interrupted)
    assert scratch is not None
    journal_of(scratch).write_bytes(b"")
    api.export(MODEL, interrupted, precision="int4", resume=True)
    assert read_all(interrupted) == read_all(whole.path)
