"""Bundles are whole or not there, and a damaged file is named."""

from __future__ import annotations

import os
import stat
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from lfm2_deploy import bundle as bundle_module
from lfm2_deploy.bundle import (
    GRAPH,
    MANIFEST,
    WEIGHTS,
    Bundle,
    check_destination,
    open_bundle,
    seal,
)
from lfm2_deploy.config import parse_config
from lfm2_deploy.errors import BundleError
from lfm2_deploy.unfinished import writing_bundle
from lfm2_deploy.words import quote_path

from .made_up import CONFIG, FILES, MADE, contents, refuse, write


def write_half(path: Path, failure: BaseException) -> None:
    with writing_bundle(path, overwrite=True) as folder:
        (folder / GRAPH).write_bytes(b"half")
        raise failure


def test_sealed_bundle_opens_as_it_was_written(path: Path) -> None:
    opened = open_bundle(path)
    assert replace(opened.manifest, files={}) == MADE
    assert opened.config == parse_config(CONFIG)
    assert opened.path == path
    assert opened.graph == path / GRAPH
    assert contents(path).items() >= FILES.items()


def test_manifest_records_every_other_file(path: Path) -> None:
    records = open_bundle(path).manifest.files
    assert {name: record.size_bytes for name, record in records.items()} == {
        name: len(content) for name, content in FILES.items()
    }
    # sha256 of b"graph", from `printf graph | sha256sum`.
    digest = "eef93e1d14482804277fca0172464032d1a4fdbcc338524059fa1e861454ad4d"
    assert records[GRAPH].sha256 == digest
    assert open_bundle(path).size_bytes == sum(map(len, FILES.values()))


def test_bundle_path_may_be_text(path: Path) -> None:
    assert open_bundle(str(path)) == open_bundle(path)


def test_writing_makes_parents_and_leaves_nothing_beside(path: Path) -> None:
    assert [entry.name for entry in path.parent.iterdir()] == [path.name]


def test_finished_bundle_may_be_read_by_others(path: Path) -> None:
    assert stat.S_IMODE(path.stat().st_mode) == 0o755


def test_empty_folder_is_filled(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    write(tmp_path / "empty")
    assert open_bundle(tmp_path / "empty").manifest.model == "made-up"
    assert [entry.name for entry in tmp_path.iterdir()] == ["empty"]


def test_existing_bundle_is_not_overwritten_unasked(path: Path) -> None:
    before = contents(path.parent)
    with pytest.raises(BundleError, match="already holds a bundle; pass --overwrite"):
        write(path, files={GRAPH: b"another"})
    assert contents(path.parent) == before


def test_overwrite_replaces_every_file(path: Path) -> None:
    write(path, overwrite=True, files={GRAPH: b"another", WEIGHTS: b"", "config.json": b"{}"})
    names = {GRAPH, WEIGHTS, "config.json", MANIFEST}
    assert set(contents(path.parent)) == {f"{path.name}/{name}" for name in names}
    assert open_bundle(path).graph.read_bytes() == b"another"


def test_overwrite_replaces_a_damaged_bundle(path: Path) -> None:
    (path / GRAPH).unlink()
    write(path, overwrite=True)
    open_bundle(path).verify()


@pytest.mark.parametrize("overwrite", [True, False])
@pytest.mark.parametrize("name", ["notes.txt", "manifest.json"])
def test_foreign_folder_is_never_replaced(tmp_path: Path, overwrite: bool, name: str) -> None:
    # Web apps and browser extensions have a manifest.json too.
    foreign = tmp_path / "foreign"
    foreign.mkdir()
    (foreign / name).write_text('{"manifest_version": 3, "name": "an extension"}')
    before = contents(tmp_path)
    with pytest.raises(BundleError, match="is not a bundle; choose another folder"):
        write(foreign, overwrite=overwrite)
    assert contents(tmp_path) == before


@pytest.mark.parametrize("overwrite", [True, False])
def test_file_in_the_way_is_never_replaced(tmp_path: Path, overwrite: bool) -> None:
    (tmp_path / "file").write_text("mine")
    with pytest.raises(BundleError, match="is not a bundle"):
        check_destination(tmp_path / "file", overwrite)
    with pytest.raises(BundleError, match="is not a bundle"):
        write(tmp_path / "file", overwrite=overwrite)
    assert contents(tmp_path) == {"file": b"mine"}


@pytest.mark.parametrize("failure", [RuntimeError("half way"), KeyboardInterrupt()])
def test_failure_in_the_middle_leaves_nothing(tmp_path: Path, failure: BaseException) -> None:
    with pytest.raises(type(failure)):
        write_half(tmp_path / "new", failure)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("failure", [RuntimeError("half way"), KeyboardInterrupt()])
def test_failure_in_the_middle_leaves_the_old_bundle(path: Path, failure: BaseException) -> None:
    before = contents(path.parent)
    with pytest.raises(type(failure)):
        write_half(path, failure)
    assert contents(path.parent) == before
    assert [entry.name for entry in path.parent.iterdir()] == [path.name]


def test_unsealed_folder_does_not_become_a_bundle(path: Path) -> None:
    before = contents(path.parent)
    with (
        pytest.raises(BundleError, match="was not finished"),
        writing_bundle(path, True) as folder,
    ):
        (folder / GRAPH).write_bytes(b"graph")
    assert contents(path.parent) == before
    assert [entry.name for entry in path.parent.iterdir()] == [path.name]


def test_failure_to_move_into_place_puts_the_old_bundle_back(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before, move = contents(path.parent), os.replace

    def fail_for_the_new_one(source: Path, target: Path) -> None:
        if Path(source).name.endswith(".partial"):
            raise OSError(28, "no room")
        move(source, target)

    monkeypatch.setattr(os, "replace", fail_for_the_new_one)
    with pytest.raises(BundleError, match=r"could not be replaced .no room. and is as it was"):
        write(path, overwrite=True, files={GRAPH: b"another"})
    assert contents(path.parent) == before
    assert [entry.name for entry in path.parent.iterdir()] == [path.name]


def test_interrupt_between_the_two_moves_puts_the_old_bundle_back(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before, move = contents(path.parent), os.replace

    def interrupt_the_new_one(source: Path, target: Path) -> None:
        if Path(source).name.endswith(".partial"):
            raise KeyboardInterrupt
        move(source, target)

    monkeypatch.setattr(os, "replace", interrupt_the_new_one)
    with pytest.raises(KeyboardInterrupt):
        write(path, overwrite=True)
    assert contents(path.parent) == before
    assert [entry.name for entry in path.parent.iterdir()] == [path.name]


def test_bundle_in_use_that_cannot_be_renamed_stays(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # As on Windows, where another process has one of its files open.
    before, move = contents(path.parent), os.replace

    def refuse_the_old_one(source: Path, target: Path) -> None:
        if Path(source) == path:
            raise PermissionError(13, "Access is denied")
        move(source, target)

    monkeypatch.setattr(os, "replace", refuse_the_old_one)
    with pytest.raises(BundleError, match=r"Access is denied.*close the programs that use it"):
        write(path, overwrite=True)
    assert contents(path.parent) == before
    assert [entry.name for entry in path.parent.iterdir()] == [path.name]


def test_old_bundle_that_cannot_be_put_back_is_kept_and_its_place_told(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before, move = contents(path), os.replace

    def only_move_away(source: Path, target: Path) -> None:
        if Path(source) != path:
            raise OSError(5, "input/output error")
        move(source, target)

    monkeypatch.setattr(os, "replace", only_move_away)
    with pytest.raises(BundleError, match="could not be put back") as caught:
        write(path, overwrite=True)
    (retired,) = path.parent.iterdir()
    assert str(retired / path.name) in str(caught.value)
    assert contents(retired / path.name) == before


def test_move_to_a_new_place_that_fails_is_told_in_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(source: Path, target: Path) -> None:
        raise OSError(28, "no room")

    monkeypatch.setattr(os, "replace", fail)
    with pytest.raises(BundleError, match="no room"):
        write(tmp_path / "new")
    assert list(tmp_path.iterdir()) == []


def test_place_below_a_file_is_refused(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("mine")
    with pytest.raises(BundleError, match="nothing can be written in"):
        write(tmp_path / "file" / "new" / "bundle")


def test_what_a_user_put_there_during_the_export_is_not_lost(path: Path) -> None:
    def put() -> None:
        with writing_bundle(path, True) as folder:
            (folder / GRAPH).write_bytes(b"another")
            seal(folder, MADE)
            (path / "mine.txt").write_text("mine")

    with pytest.raises(BundleError, match=r"also holds mine\.txt"):
        put()
    assert (path / "mine.txt").read_text() == "mine"
    assert [entry.name for entry in path.parent.iterdir()] == [path.name]


def test_absent_folder_is_refused_with_how_to_make_it(tmp_path: Path) -> None:
    message = refuse(tmp_path / "absent")
    assert f"{tmp_path / 'absent'} does not exist" in message
    assert "lfm2-deploy export" in message


def test_folder_without_manifest_is_not_a_bundle(path: Path) -> None:
    (path / MANIFEST).unlink()
    assert "is not a bundle (no manifest.json)" in refuse(path)


@pytest.mark.parametrize("name", FILES)
def test_missing_file_is_named(path: Path, name: str) -> None:
    (path / name).unlink()
    message = refuse(path)
    assert f"{path / name} is damaged: missing" in message
    assert "copy or export the bundle again" in message


@pytest.mark.parametrize("name", FILES)
@pytest.mark.parametrize("change", [lambda b: b[:-1], lambda b: b + b"\0", lambda b: b""])
def test_file_of_another_size_is_named_with_both_sizes(
    path: Path, name: str, change: Callable[[bytes], bytes]
) -> None:
    changed = change(FILES[name])
    (path / name).write_bytes(changed)
    message = refuse(path)
    assert f"{path / name} is damaged: {len(changed):,} bytes" in message
    assert f"expected {len(FILES[name]):,} bytes" in message


@pytest.mark.parametrize("name", FILES)
def test_flipped_bit_in_a_small_file_is_named_at_opening(path: Path, name: str) -> None:
    flip_last_bit(path / name)
    assert f"{path / name} is damaged: its sha256" in refuse(path)


def test_flipped_bit_in_a_big_file_is_found_by_verify(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(bundle_module, "_HASHED_AT_OPEN", len(FILES[WEIGHTS]) - 1)
    flip_last_bit(path / WEIGHTS)
    opened = open_bundle(path)
    with pytest.raises(BundleError) as caught:
        opened.verify()
    assert f"{path / WEIGHTS} is damaged: its sha256" in str(caught.value)


def test_checkpoint_is_advised_to_be_exported_and_not_over_itself(tmp_path: Path) -> None:
    place = tmp_path / "my model"
    place.mkdir()
    for name in ("config.json", "model.safetensors"):
        (place / name).touch()
    told = refuse(place)
    assert told.endswith(
        f"is a checkpoint, not a bundle (no manifest.json): make one with "
        f"`lfm2-deploy export {quote_path(place)}`"
    )


def test_verify_finds_a_file_that_went_missing_after_opening(path: Path) -> None:
    opened = open_bundle(path)
    (path / WEIGHTS).unlink()
    with pytest.raises(BundleError, match=r"model\.onnx\.data is damaged: missing"):
        opened.verify()


def test_verify_of_an_intact_bundle_tells_of_every_byte(path: Path) -> None:
    opened: Bundle = open_bundle(path)
    steps: list[tuple[str, int, int]] = []
    opened.verify(lambda what, done, total: steps.append((what, done, total)))
    assert {what for what, _, _ in steps} == {"checking"}
    assert [done for _, done, _ in steps] == [2, 7, 1031, 1049, 1049]
    assert {total for _, _, total in steps} == {1049}


def test_hashing_tells_of_the_bytes_within_a_file(
    path: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(bundle_module, "_HASHED_AT_ONCE", 500)
    checked: list[tuple[str, int, int]] = []
    open_bundle(path).verify(lambda *step: checked.append(step))
    assert [done for _, done, _ in checked] == [2, 7, 507, 1007, 1031, 1049, 1049]
    sealed: list[tuple[str, int, int]] = []
    for name, content in FILES.items():
        (tmp_path / "scratch").mkdir(exist_ok=True)
        (tmp_path / "scratch" / name).write_bytes(content)
    seal(tmp_path / "scratch", MADE, lambda *step: sealed.append(step))
    assert sealed == [("hashing", done, 1049) for done in (2, 7, 507, 1007, 1031, 1049)]


def flip_last_bit(file: Path) -> None:
    content = bytearray(file.read_bytes())
    content[-1] ^= 1
    file.write_bytes(content)
