"""What comes from the Hub: the real huggingface_hub in a process of its own, on a fake Hub."""

from __future__ import annotations

import hashlib
import json
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from lfm2_deploy import ModelStore, open_bundle
from lfm2_deploy.demo import DEMO_MODEL

from .fake_hub import COMMIT, FakeHub

PROGRAM = (sys.executable, "-c", "from lfm2_deploy.cli import main; raise SystemExit(main())")
Damage = Callable[[Path], None]


def run(hub: FakeHub, tmp_path: Path, *words: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [*PROGRAM, *words],
        env=hub.environment(tmp_path),
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )


def read_error(done: subprocess.CompletedProcess[str]) -> str:
    """The one line that says what failed."""
    assert done.returncode == 1
    (line,) = [line for line in done.stderr.splitlines() if line.startswith("error: ")]
    assert "Traceback" not in done.stderr
    return line


@pytest.fixture
def store(tmp_path: Path) -> ModelStore:
    """The store that the program uses, seen from here."""
    return ModelStore(tmp_path / "store")


def make_heavy(folder: Path, size: int) -> None:
    """Give a bundle weights of so many bytes more, with a manifest that says so."""
    with (folder / "model.onnx.data").open("ab") as file:
        file.write(bytes(size))
    manifest = json.loads((folder / "manifest.json").read_text(encoding="utf-8"))
    content = (folder / "model.onnx.data").read_bytes()
    record = {"size_bytes": len(content), "sha256": hashlib.sha256(content).hexdigest()}
    manifest["files"]["model.onnx.data"] = record
    (folder / "manifest.json").write_text(json.dumps(manifest), encoding="utf-8")


def test_bundle_is_downloaded_and_needs_no_network_again(
    hub: FakeHub, store: ModelStore, copied: Path, tmp_path: Path
) -> None:
    hub.repositories["somebody/LFM2-demo-cpu-int4"] = copied
    (copied / "notes.txt").write_text("not of the bundle")
    (copied / "README.md").write_text("its card, edited")
    done = run(hub, tmp_path, "pull", "somebody/LFM2-demo-cpu-int4", "--json")
    assert done.returncode == 0, done.stderr
    told = json.loads(done.stdout)
    assert (told["name"], told["pulled"]) == ("LFM2-demo-cpu-int4", True)
    assert told["source"] == "somebody/LFM2-demo-cpu-int4"
    found = store.get("LFM2-demo-cpu-int4")
    open_bundle(found.path).verify()
    names = {file.name for file in found.path.iterdir()}
    assert names == {file.name for file in copied.iterdir()} - {"notes.txt"}
    assert (found.path / "README.md").read_text() == "its card, edited"
    assert not store.list_unfinished()

    asked = len(hub.asked)
    again = run(hub, tmp_path, "pull", "somebody/LFM2-demo-cpu-int4", "--json")
    assert json.loads(again.stdout)["pulled"] is False
    assert len(hub.asked) == asked


def test_download_that_was_killed_is_invisible_and_goes_on_inside_the_file(
    hub: FakeHub, store: ModelStore, copied: Path, tmp_path: Path
) -> None:
    make_heavy(copied, 30 * 2**20)
    hub.repositories["somebody/heavy"] = copied
    # huggingface_hub writes 10 MiB at once.
    hub.stall_after["model.onnx.data"] = 21 * 2**20
    with subprocess.Popen(
        [*PROGRAM, "pull", "somebody/heavy"],
        env=hub.environment(tmp_path),
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    ) as process:
        assert hub.stalled.wait(60)
        wait_for_size(store.root, 20 * 2**20)
        process.send_signal(signal.SIGKILL if sys.platform != "win32" else signal.SIGTERM)
    hub.go_on.set()
    assert store.list() == ()
    assert store.list_unfinished() == ("heavy",)

    done = run(hub, tmp_path, "pull", "somebody/heavy")
    assert done.returncode == 0, done.stderr
    open_bundle(store.get("heavy").path).verify()
    assert hub.count_sent("model.onnx.data") == [0, 20 * 2**20]
    assert hub.count_sent("tokenizer.json") == [0]


def wait_for_size(folder: Path, size: int) -> None:
    """Wait until a part of a file is on the disk."""
    import time

    end = time.monotonic() + 60
    while time.monotonic() < end:
        if any(part.stat().st_size >= size for part in folder.rglob("*.part")):
            return
        time.sleep(0.05)
    raise AssertionError(f"no part of {size} bytes")


def test_damaged_bundle_is_refused_and_only_what_was_wrong_comes_anew(
    hub: FakeHub, store: ModelStore, copied: Path, tmp_path: Path, damage: Damage, bundle: Path
) -> None:
    hub.repositories["somebody/damaged"] = copied
    damage(copied / "model.onnx.data")
    line = read_error(run(hub, tmp_path, "pull", "somebody/damaged"))
    assert "what came from somebody/damaged is not what its manifest says" in line
    assert "model.onnx.data is damaged: its sha256 is not the manifest's" in line
    assert store.list() == ()
    shutil.copy(bundle / "model.onnx.data", copied / "model.onnx.data")
    assert run(hub, tmp_path, "pull", "somebody/damaged").returncode == 0
    assert hub.count_sent("model.onnx.data") == [0, 0]
    assert hub.count_sent("model.onnx") == [0]


def test_checkpoint_is_downloaded_and_exported(
    hub: FakeHub, store: ModelStore, tmp_path: Path
) -> None:
    hub.repositories["somebody/LFM2-tiny"] = DEMO_MODEL
    done = run(hub, tmp_path, "pull", "somebody/LFM2-tiny", "--precision", "int8")
    assert done.returncode == 0, done.stderr
    (found,) = store.list()
    assert (found.name, found.source) == ("LFM2-tiny-cpu-int8", "somebody/LFM2-tiny")
    assert found.revision == COMMIT
    assert "next: lfm2-deploy chat LFM2-tiny-cpu-int8" in done.stderr


def test_repository_of_neither_kind_is_one_clear_line(
    hub: FakeHub, store: ModelStore, tmp_path: Path
) -> None:
    (tmp_path / "gguf").mkdir()
    (tmp_path / "gguf" / "model.gguf").touch()
    # Somebody else's manifest does not make a bundle.
    (tmp_path / "gguf" / "manifest.json").write_text('{"name": "an app"}')
    hub.repositories["somebody/gguf"] = tmp_path / "gguf"
    line = read_error(run(hub, tmp_path, "pull", "somebody/gguf"))
    assert "somebody/gguf has no config.json on the Hub" in line
    (tmp_path / "gguf" / "manifest.json").unlink()
    hub.repositories["somebody/ggml"] = tmp_path / "gguf"
    line = read_error(run(hub, tmp_path, "pull", "somebody/ggml"))
    assert "somebody/ggml has no manifest.json, so it is no bundle; and" in line
    assert store.list() == ()


def test_repository_that_does_not_exist_is_one_clear_line(hub: FakeHub, tmp_path: Path) -> None:
    line = read_error(run(hub, tmp_path, "pull", "somebody/absent"))
    assert "somebody/absent was not found on the Hub" in line


def test_hub_out_of_reach_is_one_clear_line(hub: FakeHub, tmp_path: Path) -> None:
    environment = {**hub.environment(tmp_path), "HF_HUB_OFFLINE": "1"}
    done = subprocess.run(
        [*PROGRAM, "pull", "somebody/model"],
        env=environment,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert "the Hub cannot be reached" in read_error(done)
