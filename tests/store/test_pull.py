"""What comes into the store in one process, without a Hub."""

from __future__ import annotations

import errno
import os
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import pytest

from lfm2_deploy import ModelStore, open_bundle
from lfm2_deploy.contracts import Progress
from lfm2_deploy.errors import (
    BundleError,
    DiskFullError,
    SourceError,
    StoreError,
    UnknownModelError,
)
from lfm2_deploy.store import fetch
from lfm2_deploy.store.locks import hold_model
from lfm2_deploy.store.shelf import StoredModel

Damage = Callable[[Path], None]


def list_files(folder: Path) -> list[str]:
    return sorted(str(file.relative_to(folder)) for file in folder.rglob("*") if file.is_file())


def interrupt_at(stage: str, at_least: int = 0) -> Progress:
    """Press Ctrl-C when a stage is that far."""

    def progress(what: str, done: int, total: int) -> None:
        if what == stage and done > at_least:
            raise KeyboardInterrupt

    return progress


def record_stages(stages: list[tuple[str, int]]) -> Progress:
    return lambda what, done, total: stages.append((what, done))


def test_bundles_folder_is_copied_and_its_files_are_as_they_were(
    store: ModelStore, bundle: Path
) -> None:
    (bundle.parent / "beside").touch()
    found = store.pull(str(bundle), name="mine")
    assert found == StoredModel(
        name="mine",
        path=store.root / "mine",
        source=str(bundle),
        revision="",
        target="cpu",
        precision="int4",
        size_bytes=sum(file.stat().st_size for file in bundle.iterdir()),
        last_used=None,
        in_use=False,
        fault="",
    )
    assert list_files(found.path) == list_files(bundle)
    open_bundle(found.path).verify()
    # Nothing else is left: no scratch, no locks.
    others = [file for file in list_files(store.root) if not file.startswith("mine/")]
    assert others == [".records/mine.json"]
    assert not store.list_unfinished()


def test_copy_shares_no_bytes_that_a_program_could_change(store: ModelStore, copied: Path) -> None:
    found = store.pull(str(copied))
    assert found.name == "copied"
    with (copied / "model.onnx.data").open("r+b") as file:
        file.write(b"changed")
    assert store.check("copied").fault == ""


@pytest.mark.parametrize("name", ["model.onnx.data", "tokenizer.json"])
def test_damaged_bundle_does_not_become_visible(
    store: ModelStore, copied: Path, damage: Damage, name: str
) -> None:
    damage(copied / name)
    with pytest.raises(BundleError, match=rf"came from .*copied .*{name} is damaged.*pull it"):
        store.pull(str(copied))
    assert store.list() == ()


def test_bundle_that_lacks_a_file_does_not_become_visible(store: ModelStore, copied: Path) -> None:
    (copied / "model.onnx").unlink()
    with pytest.raises(BundleError, match=r"model\.onnx is missing"):
        store.pull(str(copied))
    assert store.list() == ()


def test_other_files_of_the_folder_stay_outside(store: ModelStore, copied: Path) -> None:
    (copied / "private.txt").write_text("mine")
    assert "private.txt" not in list_files(store.pull(str(copied)).path)


def test_checkpoint_is_exported_under_the_default_name(store: ModelStore) -> None:
    found = store.pull("synthetic:tiny-dense", precision="int8")
    assert (found.name, found.source) == ("tiny-dense-cpu-int8", "synthetic:tiny-dense")
    assert (found.target, found.precision) == ("cpu", "int8")
    open_bundle(found.path).verify()
    assert not store.list_unfinished()


def test_demo_is_the_model_of_this_package(store: ModelStore) -> None:
    found = store.pull("demo")
    assert (found.name, found.source) == ("demo-cpu-int4", "demo")
    assert open_bundle(found.path).manifest.model == "lfm2-demo-9m"


def test_folder_called_demo_that_holds_no_model_is_not_meant(
    store: ModelStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, bundle: Path
) -> None:
    from lfm2_deploy.store.sources import BundleSource, CheckpointSource, find_source

    monkeypatch.chdir(tmp_path)
    (tmp_path / "demo").mkdir()
    assert isinstance(find_source("demo", None), CheckpointSource)
    shutil.rmtree(tmp_path / "demo")
    shutil.copytree(bundle, tmp_path / "demo")
    assert isinstance(find_source("demo", None), BundleSource)


@pytest.mark.parametrize("source", ["bundle", "synthetic:tiny-dense"])
def test_second_pull_finds_it_done(store: ModelStore, bundle: Path, source: str) -> None:
    model = str(bundle) if source == "bundle" else source
    first = store.pull(model, name="mine")
    before = (first.path / "manifest.json").stat().st_mtime_ns
    stages: list[tuple[str, int]] = []
    assert store.pull(model, name="mine", progress=record_stages(stages)) == first
    assert (first.path / "manifest.json").stat().st_mtime_ns == before
    assert {what for what, _ in stages} <= {"checking"}


def test_name_of_another_model_is_kept_unless_told_otherwise(
    store: ModelStore, bundle: Path
) -> None:
    store.pull(str(bundle), name="mine")
    with pytest.raises(StoreError, match=rf"another model called mine, from {bundle}: .*--over"):
        store.pull("synthetic:tiny-dense", name="mine")
    assert store.get("mine").source == str(bundle)
    store.pull("synthetic:tiny-dense", name="mine", overwrite=True)
    assert store.get("mine").source == "synthetic:tiny-dense"


def test_other_precision_of_the_same_model_does_not_pass_for_it(store: ModelStore) -> None:
    store.pull("synthetic:tiny-dense", name="mine")
    with pytest.raises(StoreError, match="another model called mine"):
        store.pull("synthetic:tiny-dense", name="mine", precision="int8")


def test_folder_in_the_way_is_left_alone(store: ModelStore, bundle: Path) -> None:
    (store.root / "mine").mkdir(parents=True)
    (store.root / "mine" / "letter.txt").write_text("dear")
    for overwrite in (False, True):
        with pytest.raises(StoreError, match="mine"):
            store.pull(str(bundle), name="mine", overwrite=overwrite)
    assert (store.root / "mine" / "letter.txt").read_text() == "dear"


def test_damaged_model_is_told_and_comes_anew(
    store: ModelStore, bundle: Path, damage: Damage
) -> None:
    place = store.pull(str(bundle), name="mine").path
    damage(place / "tokenizer.json")
    (found,) = store.list()
    command = f"lfm2-deploy pull {bundle} --name mine"
    assert found.fault.startswith(f"{place / 'tokenizer.json'} is damaged: its sha256")
    assert found.fault.endswith(f"get it anew with `{command}`")
    assert store.pull(str(bundle), name="mine").fault == ""
    assert store.list()[0].fault == ""


def test_fault_that_only_a_check_finds_is_kept_until_it_is_mended(
    store: ModelStore, bundle: Path, damage: Damage, monkeypatch: pytest.MonkeyPatch
) -> None:
    from lfm2_deploy import bundle as bundle_module

    monkeypatch.delenv("LFM2_DEPLOY_REMEMBER")
    monkeypatch.setattr(bundle_module, "_HASHED_AT_OPEN", 2**14)  # so that weights pass for large
    place = store.pull(str(bundle), name="mine").path
    weights = place / "model.onnx.data"
    times = weights.stat()
    damage(weights)
    os.utime(weights, ns=(times.st_atime_ns, times.st_mtime_ns))
    assert store.get("mine").fault == ""
    assert "model.onnx.data is damaged" in store.check("mine").fault
    assert "model.onnx.data is damaged" in store.get("mine").fault
    assert store.pull(str(bundle), name="mine").fault == ""
    assert store.check("mine").fault == ""


def test_option_that_a_bundle_contradicts_is_refused(store: ModelStore, bundle: Path) -> None:
    with pytest.raises(StoreError, match=r"bundle of target cpu, and npu was asked for: leave"):
        store.pull(str(bundle), target="npu")
    with pytest.raises(StoreError, match=r"precision int4, and fp16 was asked for"):
        store.pull(str(bundle), precision="fp16")
    assert store.pull(str(bundle), target="CPU", precision="int4").fault == ""


def test_model_of_the_store_is_not_pulled_into_it(store: ModelStore, bundle: Path) -> None:
    place = store.pull(str(bundle), name="mine").path
    with pytest.raises(StoreError, match="in the store already, as mine"):
        store.pull(str(place), name="again")


@pytest.mark.parametrize(
    ("model", "words"),
    [
        ("folder", "is neither a bundle .no manifest.json. nor a checkpoint"),
        ("nothing-like-it", "is nothing that can be pulled: expected a Hub id"),
        ("", "is nothing that can be pulled"),
        ("./absent", "is nothing that can be pulled"),
    ],
)
def test_what_is_of_no_kind_is_one_clear_line(
    store: ModelStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, model: str, words: str
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "folder").mkdir()
    with pytest.raises(StoreError, match=words):
        store.pull(model)
    assert not store.root.exists()


def test_revision_of_what_is_not_on_the_hub_is_refused(store: ModelStore, bundle: Path) -> None:
    with pytest.raises(StoreError, match="only Hub models have revisions"):
        store.pull(str(bundle), revision="v1")


def test_unknown_synthetic_model_leaves_nothing(store: ModelStore) -> None:
    with pytest.raises(SourceError):
        store.pull("synthetic:nothing")
    assert store.list_unfinished() == ()
    assert list_files(store.root) == []


def test_bad_name_is_refused_before_anything_is_fetched(store: ModelStore) -> None:
    with pytest.raises(StoreError, match="is no name"):
        store.pull("LiquidAI/LFM2-350M", name="../outside")
    assert not store.root.exists()


def test_interrupted_export_is_unfinished_and_goes_on(store: ModelStore) -> None:
    with pytest.raises(KeyboardInterrupt):
        store.pull("synthetic:tiny-dense", progress=interrupt_at("writing weights"))
    assert store.list() == ()
    assert store.list_unfinished() == ("tiny-dense-cpu-int4",)
    stages: list[tuple[str, int]] = []
    found = store.pull("synthetic:tiny-dense", progress=record_stages(stages))
    # The first thing told of the weights is what was done before.
    assert next(done for what, done in stages if what == "writing weights") > 0
    open_bundle(found.path).verify()
    assert store.list_unfinished() == ()


def test_what_an_interrupted_export_of_something_else_left_is_not_gone_on_with(
    store: ModelStore,
) -> None:
    with pytest.raises(KeyboardInterrupt):
        store.pull("synthetic:tiny-dense", name="x", progress=interrupt_at("writing weights"))
    found = store.pull("synthetic:tiny-moe", name="x")
    assert open_bundle(found.path).manifest.model == "tiny-moe"


def test_unfinished_pull_is_discarded_by_remove(store: ModelStore) -> None:
    with pytest.raises(KeyboardInterrupt):
        store.pull("synthetic:tiny-dense", progress=interrupt_at("writing weights"))
    assert store.remove("tiny-dense-cpu-int4") > 0
    assert store.list_unfinished() == ()
    assert list_files(store.root) == []


def test_copy_too_large_for_the_disk_is_refused_before_it_begins(
    store: ModelStore, bundle: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(fetch.shutil, "disk_usage", lambda _: SimpleNamespace(free=1000))
    with pytest.raises(DiskFullError, match=r"needed in .* 1 kB are free: .*LFM2_DEPLOY_STORE"):
        store.pull(str(bundle))
    assert store.list() == ()
    assert store.list_unfinished() == ()


def test_disk_that_fills_up_is_one_clear_line(
    store: ModelStore, bundle: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(fetch, "_copy_file", fail)
    with pytest.raises(DiskFullError, match="disk that is full: free some space and pull it again"):
        store.pull(str(bundle))
    assert store.list() == ()


def test_disk_that_fills_up_in_an_export_speaks_of_pulling_again(
    store: ModelStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    from exporters import writer

    def fail(*_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(writer, "_fill", fail)
        with pytest.raises(DiskFullError, match="pull it again, what is done is kept") as caught:
            store.pull("synthetic:tiny-dense")
    assert "--resume" not in str(caught.value)
    assert store.pull("synthetic:tiny-dense").fault == ""


@pytest.mark.skipif(sys.platform != "linux", reason="where nothing can be written, even by root")
def test_store_that_cannot_be_written_is_one_clear_line(bundle: Path) -> None:
    store = ModelStore("/proc/store")
    with pytest.raises(StoreError, match=r"nothing can be written in the store /proc/store"):
        store.pull(str(bundle))
    assert store.list() == ()


def begin_to_replace(store: ModelStore) -> None:
    """A model `x`, and what an interrupted pull has that would replace it."""
    store.pull("synthetic:tiny-dense", name="x")
    with pytest.raises(KeyboardInterrupt):
        store.pull(
            "synthetic:tiny-moe",
            name="x",
            overwrite=True,
            progress=interrupt_at("writing weights"),
        )
    assert store.list_unfinished() == ("x",)


def test_discarding_an_unfinished_pull_leaves_the_model_of_that_name(store: ModelStore) -> None:
    begin_to_replace(store)
    assert store.remove("x", unfinished=True) > 0
    assert store.list_unfinished() == ()
    assert store.check("x").fault == ""
    with pytest.raises(UnknownModelError, match="x has no unfinished pull"):
        store.remove("x", unfinished=True)


def test_refused_removal_leaves_the_unfinished_pull(store: ModelStore) -> None:
    begin_to_replace(store)
    hold = hold_model(store.root / "x")
    with pytest.raises(StoreError, match="x is loaded by a process"):
        store.remove("x")
    assert store.list_unfinished() == ("x",)
    hold.release()
    store.remove("x")
    assert (store.list(), store.list_unfinished()) == ((), ())


@pytest.mark.parametrize("source", ["bundle", "synthetic:tiny-dense"])
def test_model_in_use_is_refused_before_it_is_made_anew(
    store: ModelStore, bundle: Path, source: str
) -> None:
    model = str(bundle) if source == "bundle" else source
    hold = hold_model(store.pull(model, name="x").path)
    stages: list[tuple[str, int]] = []
    with pytest.raises(StoreError, match="x is loaded by a process"):
        store.pull(model, name="x", overwrite=True, progress=record_stages(stages))
    assert stages == []
    assert store.list_unfinished() == ()
    hold.release()
