"""One store, several processes: none sees half a model, and none loses one that it uses."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import pytest

from lfm2_deploy import ModelStore, open_bundle
from lfm2_deploy.errors import StoreError
from lfm2_deploy.store.locks import hold_model, pulling

LOAD = """
import sys, lfm2_deploy
model = lfm2_deploy.load(sys.argv[1], threads=1)
print("loaded", flush=True)
sys.stdin.readline()
print(len(model.generate("My fellow", max_new_tokens=2).token_ids), flush=True)
"""
# Stands still in the middle of an export, having written some weights.
PULL_AND_STALL = """
import sys, exporters.journal, lfm2_deploy

exporters.journal._SECONDS = 0.0  # what is done is on the disk at once

def progress(what, done, total):
    if what == "writing weights" and done > 0:
        print("stalled", flush=True)
        sys.stdin.readline()

lfm2_deploy.ModelStore().pull(sys.argv[1], progress=progress)
print("pulled", flush=True)
"""


@contextmanager
def running(code: str, *words: str) -> Iterator[subprocess.Popen[str]]:
    """A program that has said its first line; killed when the block ends."""
    process = subprocess.Popen(
        [sys.executable, "-c", code, *words],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        env=os.environ | {"LFM2_DEPLOY_CANARY": "off"},
    )
    try:
        yield process
    finally:
        process.kill()
        process.wait(60)
        for pipe in (process.stdin, process.stdout):
            assert pipe is not None
            with suppress(OSError):  # nobody reads what is still to be flushed
                pipe.close()


def read_line(process: subprocess.Popen[str]) -> str:
    assert process.stdout is not None
    return process.stdout.readline().strip()


def write_line(process: subprocess.Popen[str]) -> None:
    assert process.stdin is not None
    process.stdin.write("\n")
    process.stdin.flush()


def test_model_that_another_process_has_loaded_is_not_removed(
    store: ModelStore, bundle: Path
) -> None:
    store.pull(str(bundle), name="mine")
    with running(LOAD, "mine") as process:
        assert read_line(process) == "loaded"
        assert store.get("mine").in_use
        with pytest.raises(StoreError, match=rf"mine is loaded by a process \({process.pid}\)"):
            store.remove("mine")
        with pytest.raises(StoreError, match="mine is loaded by a process"):
            store.pull("synthetic:tiny-dense", name="mine", overwrite=True)
        write_line(process)
        assert read_line(process) == "2"
        process.wait(60)
        assert not store.get("mine").in_use
    assert store.remove("mine") > 0
    assert store.list() == ()


def test_process_that_was_killed_holds_nothing(store: ModelStore, bundle: Path) -> None:
    store.pull(str(bundle), name="mine")
    with running(LOAD, "mine") as process:
        assert read_line(process) == "loaded"
        process.kill()
        process.wait(60)
    assert list((store.root / ".locks").glob("*+use-*"))
    assert not store.get("mine").in_use
    assert not list((store.root / ".locks").iterdir())
    store.remove("mine")


def test_export_that_was_killed_is_invisible_and_goes_on(store: ModelStore) -> None:
    with running(PULL_AND_STALL, "synthetic:tiny-dense") as process:
        assert read_line(process) == "stalled"
        assert store.list() == ()
        with pytest.raises(StoreError, match="is being pulled"):
            store.remove("tiny-dense-cpu-int4")
        os.kill(process.pid, signal.SIGTERM if sys.platform == "win32" else signal.SIGKILL)
        process.wait(60)
    assert store.list() == ()
    assert store.list_unfinished() == ("tiny-dense-cpu-int4",)
    done: list[int] = []

    def progress(what: str, so_far: int, total: int) -> None:
        if what == "writing weights":
            done.append(so_far)

    found = store.pull("synthetic:tiny-dense", progress=progress)
    assert done[0] > 0
    open_bundle(found.path).verify()


def test_second_pull_of_a_name_waits_and_finds_it_done(store: ModelStore) -> None:
    stages: list[str] = []
    waits = threading.Event()
    found: list[str] = []

    def progress(what: str, done: int, total: int) -> None:
        stages.append(what)
        if what.startswith("waiting"):
            waits.set()

    def pull() -> None:
        found.append(store.pull("synthetic:tiny-dense", progress=progress).name)

    with running(PULL_AND_STALL, "synthetic:tiny-dense") as process:
        assert read_line(process) == "stalled"
        second = threading.Thread(target=pull)
        second.start()
        assert waits.wait(60)
        assert store.list() == ()
        # Each further step stalls, too: closing stdin answers all of them.
        assert process.stdin is not None
        process.stdin.close()
        second.join(120)
        process.wait(60)
    assert found == ["tiny-dense-cpu-int4"]
    assert stages[0] == "waiting for another process that pulls tiny-dense-cpu-int4"
    assert set(stages[1:]) <= {"checking"}


def test_readers_see_a_whole_model_while_it_is_replaced_again_and_again(
    store: ModelStore, bundle: Path, copied: Path
) -> None:
    (copied / "manifest.json").write_text(
        (copied / "manifest.json").read_text(encoding="utf-8") + "\n", encoding="utf-8"
    )
    store.pull(str(bundle), name="mine")
    ended, others = threading.Event(), list[StoreError]()

    def replace() -> None:
        for number in range(20):
            try:
                store.pull(str(copied if number % 2 else bundle), name="mine", overwrite=True)
            except StoreError as error:
                others.append(error)
        ended.set()

    writer = threading.Thread(target=replace)
    writer.start()
    rounds = 0
    while not ended.is_set():
        hold = hold_model(store.resolve("mine"))
        open_bundle(store.root / "mine").verify()
        hold.release()
        rounds += 1
    writer.join(60)
    assert rounds > 0
    assert all("is loaded by a process (this one)" in str(error) for error in others)
    assert store.check("mine").fault == ""


def test_pull_lock_of_one_name_does_not_disturb_others(store: ModelStore, bundle: Path) -> None:
    with pulling(store.root, "other"):
        assert store.pull(str(bundle), name="mine").fault == ""


@pytest.mark.skipif(sys.platform != "linux", reason="where nothing can be written, even by root")
def test_model_is_loaded_where_no_lock_can_be_made(
    store: ModelStore, bundle: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from lfm2_deploy.store import locks

    store.pull(str(bundle), name="mine")
    monkeypatch.setattr(locks, "_folder", lambda root: Path("/proc/locks"))
    hold = hold_model(store.root / "mine")
    hold.release()
    with pytest.raises(StoreError, match="nothing can be written in the store"):
        store.remove("mine")
    assert store.get("mine").fault == ""


def test_foreign_file_in_a_model_is_not_removed(store: ModelStore, bundle: Path) -> None:
    place = store.pull(str(bundle), name="mine").path
    (place / "notes.txt").write_text("dear")
    with pytest.raises(StoreError, match=r"also holds notes\.txt, which is no part"):
        store.remove("mine")
    (place / "notes.txt").unlink()
    store.remove("mine")


def test_model_without_manifest_is_listed_as_damaged_and_can_be_removed(
    store: ModelStore, bundle: Path
) -> None:
    place = store.pull(str(bundle), name="mine").path
    (place / "manifest.json").unlink()
    (found,) = store.list()
    assert "no manifest.json" in found.fault
    assert f"lfm2-deploy pull {bundle} --name mine" in found.fault
    store.remove("mine")
    assert store.list() == ()


def test_what_a_killed_remove_left_is_deleted_later(store: ModelStore, bundle: Path) -> None:
    store.pull(str(bundle), name="mine")
    left = store.root / ".trash" / "old-x"
    (left / "old").mkdir(parents=True)
    os.utime(left, (0, 0))
    store.remove("mine")
    assert not (store.root / ".trash").exists()
