from __future__ import annotations

import shutil
import sys
from pathlib import Path

import pytest

import lfm2_deploy
from lfm2_deploy import ModelStore
from lfm2_deploy.errors import BundleError, StoreError, UnknownModelError
from lfm2_deploy.store.place import find_store
from lfm2_deploy.store.records import Record, write_record
from lfm2_deploy.store.resolve import find_stored, resolve


@pytest.fixture
def filled(store: ModelStore, bundle: Path) -> ModelStore:
    store.pull(str(bundle), name="LFM2-350M-cpu-int4")
    return store


def test_name_of_the_store_is_its_folder(filled: ModelStore) -> None:
    assert resolve("LFM2-350M-cpu-int4") == filled.root / "LFM2-350M-cpu-int4"
    assert filled.resolve("LFM2-350M-cpu-int4") == filled.root / "LFM2-350M-cpu-int4"


def test_folder_of_that_name_wins(
    filled: ModelStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "LFM2-350M-cpu-int4").mkdir()
    assert resolve("LFM2-350M-cpu-int4") == Path("LFM2-350M-cpu-int4")
    assert find_stored("LFM2-350M-cpu-int4") is None


@pytest.mark.parametrize("name", ["LFM2-350M", "lfm2-350m-CPU-int4", "LFM2-350M-cpu-int8"])
def test_name_that_is_nearly_there_is_suggested(filled: ModelStore, name: str) -> None:
    with pytest.raises(UnknownModelError, match=r"did you mean LFM2-350M-cpu-int4\? .*list"):
        resolve(name)


def test_unknown_name_is_an_error_of_the_store_and_of_bundles(store: ModelStore) -> None:
    for kind in (StoreError, BundleError):
        with pytest.raises(kind, match=r"nothing is no folder and no model.*pull MODEL"):
            lfm2_deploy.load("nothing")


def test_hub_id_is_told_to_be_pulled(filled: ModelStore) -> None:
    with pytest.raises(
        UnknownModelError, match=r"mean LFM2-350M-cpu-int4\? `lfm2-deploy pull LiquidAI/LFM2-350M`"
    ):
        lfm2_deploy.load("LiquidAI/LFM2-350M")


@pytest.mark.parametrize("name", ["lfm2-demo-9m", "somebody/LFM2-Demo-9M", "demo"])
def test_what_a_model_was_made_from_is_told_its_name(
    store: ModelStore, bundle: Path, name: str
) -> None:
    store.pull(str(bundle), name="mine")
    source = Record("demo", "", "exported", "cpu", "int4", 0.0)
    write_record(store.root, "mine", source)
    with pytest.raises(UnknownModelError, match=r"did you mean mine\?"):
        resolve(name)


def test_demo_is_told_to_be_pulled(store: ModelStore) -> None:
    with pytest.raises(UnknownModelError, match=r"`lfm2-deploy pull demo` gets it$"):
        resolve("demo")


@pytest.mark.parametrize("given", ["./absent", "/no/such/folder", "~/absent"])
def test_path_that_does_not_exist_is_left_to_who_opens_it(store: ModelStore, given: str) -> None:
    assert resolve(given) == Path(given)


@pytest.mark.parametrize("given", ["..", ".records", "../store/LFM2-350M-cpu-int4", ""])
def test_nothing_outside_the_store_is_found_by_name(filled: ModelStore, given: str) -> None:
    assert find_stored(given) is None


def test_folder_of_the_store_that_is_no_model_is_none(filled: ModelStore) -> None:
    (filled.root / "notes").mkdir()
    assert find_stored("notes") is None
    assert [model.name for model in filled.list()] == ["LFM2-350M-cpu-int4"]


def test_model_is_loaded_by_its_name_and_that_is_remembered(filled: ModelStore) -> None:
    assert filled.get("LFM2-350M-cpu-int4").last_used is None
    model = lfm2_deploy.load("LFM2-350M-cpu-int4", threads=1)
    assert model.generate("My fellow", max_new_tokens=1).token_ids
    found = filled.get("LFM2-350M-cpu-int4")
    assert found.in_use
    assert found.last_used is not None
    del model
    assert not filled.get("LFM2-350M-cpu-int4").in_use


def test_failed_load_leaves_no_model_in_use(filled: ModelStore) -> None:
    with pytest.raises(lfm2_deploy.Lfm2DeployError):
        lfm2_deploy.load("LFM2-350M-cpu-int4", device="npu")
    assert not filled.get("LFM2-350M-cpu-int4").in_use


def test_comparison_takes_names_with_and_without_a_device(filled: ModelStore) -> None:
    from lfm2_deploy import api

    folder = filled.root / "LFM2-350M-cpu-int4"
    assert api._find_stored_subject("LFM2-350M-cpu-int4") == str(folder)
    assert api._find_stored_subject("LFM2-350M-cpu-int4@cpu") == f"{folder}@cpu"
    assert api._find_stored_subject("torch:x") == "torch:x"


def test_bundle_beside_the_store_is_not_entered(filled: ModelStore, bundle: Path) -> None:
    from lfm2_deploy.store.locks import list_users

    model = lfm2_deploy.load(bundle, threads=1)
    assert not (bundle.parent / ".locks").exists()
    assert not list_users(filled.root, "LFM2-350M-cpu-int4")
    del model


@pytest.mark.skipif(sys.platform != "linux", reason="other systems have no such variable")
def test_store_is_among_the_users_data(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.delenv("LFM2_DEPLOY_STORE")
    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path))
    assert find_store() == tmp_path / "lfm2-deploy" / "models"
    monkeypatch.setenv("LFM2_DEPLOY_STORE", str(tmp_path / "mine"))
    assert find_store() == tmp_path / "mine"


def test_store_of_a_programs_own_keeps_its_models_in_use(bundle: Path, tmp_path: Path) -> None:
    own = ModelStore(tmp_path / "own")
    path = own.pull(str(bundle), name="mine").path
    model = lfm2_deploy.load(path, threads=1)
    with pytest.raises(StoreError, match=r"loaded by a process \(this one\)"):
        own.remove("mine")
    del model
    own.remove("mine")
    assert own.list() == ()


def test_model_that_is_a_link_is_removed_without_what_it_points_to(
    store: ModelStore, copied: Path
) -> None:
    store.root.mkdir()
    (store.root / "linked").symlink_to(copied)
    assert [model.name for model in store.list()] == ["linked"]
    store.remove("linked")
    assert not store.list()
    assert (copied / "manifest.json").is_file()
    shutil.rmtree(copied)
