"""Bundles are whole or not there, and damage is found and named."""

from __future__ import annotations

import json
import os
import stat
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from lfm2_deploy import bundle as bundle_module
from lfm2_deploy.bundle import (
    DEMO_SOURCE,
    GRAPH,
    MANIFEST,
    SCHEMA_VERSION,
    WEIGHTS,
    Bundle,
    Manifest,
    StoredTensor,
    check_destination,
    open_bundle,
    seal,
    writing_bundle,
)
from lfm2_deploy.checkpoint.folder import CONFIG_FILE, SIDE_FILES
from lfm2_deploy.config import parse_config
from lfm2_deploy.contracts import Origin
from lfm2_deploy.errors import BundleError
from lfm2_deploy.states import list_states

CONFIG: Mapping[str, Any] = {
    "model_type": "lfm2",
    "vocab_size": 32,
    "hidden_size": 8,
    "num_hidden_layers": 2,
    "layer_types": ["conv", "full_attention"],
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "intermediate_size": 16,
    "block_auto_adjust_ff_dim": False,
    "conv_L_cache": 3,
    "norm_eps": 1e-5,
    "rope_theta": 10000.0,
    "max_position_embeddings": 64,
    "tie_word_embeddings": True,
    "eos_token_id": [7, 2],
}
MADE = Manifest(
    schema_version=SCHEMA_VERSION,
    model="made-up",
    origin=Origin("hub", "someone/made-up", revision="abc123", adapter="polite"),
    target="cpu",
    runtime="ort",
    precision="int4",
    context_length=64,
    config=CONFIG,
    states=list_states(parse_config(CONFIG)),
    quantization=(StoredTensor("model.embed_tokens.weight", 4, 32, "large"),),
    made_with={"numpy": "2.0"},
    notes=("tie_word_embeddings = true",),
    files={},
)
FILES: Mapping[str, bytes] = {
    GRAPH: b"graph",
    WEIGHTS: bytes(range(256)) * 4,
    "config.json": b"{}",
    "tokenizer.json": b'{"version": "1.0"}',
}


def write(path: Path, *, overwrite: bool = False, files: Mapping[str, bytes] = FILES) -> None:
    with writing_bundle(path, overwrite) as folder:
        for name, content in files.items():
            (folder / name).write_bytes(content)
        seal(folder, MADE)


def write_half(path: Path, failure: BaseException) -> None:
    with writing_bundle(path, overwrite=True) as folder:
        (folder / GRAPH).write_bytes(b"half")
        raise failure


def contents(folder: Path) -> dict[str, bytes]:
    """Every file below a folder, hidden ones included."""
    return {
        str(file.relative_to(folder)): file.read_bytes()
        for file in folder.rglob("*")
        if file.is_file()
    }


def refuse(path: Path) -> str:
    """The message with which a bundle is refused, in one line."""
    with pytest.raises(BundleError) as caught:
        open_bundle(path)
    assert len(str(caught.value).splitlines()) == 1
    return str(caught.value)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """A bundle alone in its folder."""
    path = tmp_path / "parent" / "made-up"
    write(path)
    return path


@pytest.fixture
def edit_manifest(path: Path) -> Callable[[Callable[[dict[str, Any]], object]], None]:
    """Change the bundle's manifest.json in place."""

    def edit(change: Callable[[dict[str, Any]], object]) -> None:
        raw = json.loads((path / MANIFEST).read_text())
        change(raw)
        (path / MANIFEST).write_text(json.dumps(raw))

    return edit


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
        if ".partial-" in Path(source).name:
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
        if ".partial-" in Path(source).name:
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


@pytest.mark.parametrize("content", [b"", b"{", b"[]", b"1", b"null", b"{}", b"\xff\xfe"])
def test_manifest_that_is_not_one_is_named(path: Path, content: bytes) -> None:
    (path / MANIFEST).write_bytes(content)
    message = refuse(path)
    assert str(path / MANIFEST) in message
    assert "damaged" in message
    assert "export the model again" in message


def test_manifest_cut_in_half_is_named(path: Path) -> None:
    whole = (path / MANIFEST).read_bytes()
    (path / MANIFEST).write_bytes(whole[: len(whole) // 2])
    message = refuse(path)
    assert str(path / MANIFEST) in message
    assert "damaged" in message


@pytest.mark.parametrize("key", Manifest.__dataclass_fields__)
def test_manifest_without_a_key_is_named(
    path: Path, edit_manifest: Callable[..., None], key: str
) -> None:
    edit_manifest(lambda raw: raw.pop(key))
    message = refuse(path)
    assert f"{path / MANIFEST} is damaged" in message
    assert key in message


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("origin", "hub"),
        ("origin", {"kind": "hub"}),
        ("states", None),
        ("states", [{"input": "past.0.conv"}]),
        ("quantization", [{"name": "model.embed_tokens.weight", "bytes": 4}]),
        ("files", []),
        ("files", {GRAPH: {"size_bytes": 5}}),
        ("config", None),
        ("config", {}),
        ("unheard_of", 1),
    ],
)
def test_manifest_of_another_form_is_named(
    path: Path, edit_manifest: Callable[..., None], key: str, value: object
) -> None:
    edit_manifest(lambda raw: raw.update({key: value}))
    assert f"{path / MANIFEST} is damaged" in refuse(path)


@pytest.mark.parametrize("version", [0, SCHEMA_VERSION + 1, "1", 1.0, True, None])
def test_other_schema_version_is_refused_with_both_versions(
    path: Path, edit_manifest: Callable[..., None], version: object
) -> None:
    # Another version may have other keys: the version is what must be complained of.
    edit_manifest(lambda raw: raw.update(schema_version=version, new_key=1))
    message = refuse(path)
    assert f"has schema version {version!r}, this package reads {SCHEMA_VERSION}" in message


@pytest.mark.parametrize("name", ["../outside", "a/b", "C:secret", "..", "a\\b", "", ".", "a\nb"])
def test_file_name_that_leads_elsewhere_is_refused(
    path: Path, edit_manifest: Callable[..., None], name: str
) -> None:
    record = {"size_bytes": 1, "sha256": "0"}
    edit_manifest(lambda raw: raw["files"].update({name: record}))
    assert "is not a plain file name" in refuse(path)


@pytest.mark.parametrize(
    ("key", "value", "reason"),
    [
        ("files", {}, r"it lists no config\.json"),
        ("context_length", "x", "context_length is 'x'"),
        ("context_length", 10**12, "expected 1 to 64"),
        ("context_length", True, "context_length is True"),
        ("context_length", 0, "context_length is 0, expected 1 to 64"),
        ("context_length", 64.0, "context_length is 64.0, expected an integer"),
        ("notes", "text", "notes is 'text', expected a list"),
        ("notes", [1], "a note is 1, expected text"),
        ("made_with", [], r"made_with is \[\], expected an object"),
        ("made_with", {"numpy": 2}, "version of 'numpy' is 2"),
        ("origin", {"kind": "hub", "name": 5}, r"origin\.name is 5"),
        (
            "quantization",
            [{"name": "a", "bits": "4", "group": 32, "reason": "large"}],
            "bits of a stored tensor is '4'",
        ),
        ("runtime", [], r"runtime is \[\], expected text"),
        ("states", [], "states are not those of its config"),
    ],
)
def test_value_that_cannot_be_right_is_refused(
    path: Path, edit_manifest: Callable[..., None], key: str, value: object, reason: str
) -> None:
    edit_manifest(lambda raw: raw.update({key: value}))
    with pytest.raises(BundleError, match=rf"is damaged \(.*{reason}.*\); export the model again"):
        open_bundle(path)


@pytest.mark.parametrize("name", [GRAPH, WEIGHTS, "config.json"])
def test_manifest_that_lists_no_essential_file_is_refused(
    path: Path, edit_manifest: Callable[..., None], name: str
) -> None:
    edit_manifest(lambda raw: raw["files"].pop(name))
    assert f"is damaged (it lists no {name})" in refuse(path)


@pytest.mark.parametrize(
    ("key", "value", "reason"),
    [
        ("size_bytes", -1, "size of model.onnx is -1"),
        ("size_bytes", 5.0, "size of model.onnx is 5.0, expected an integer"),
        ("size_bytes", True, "size of model.onnx is True, expected an integer"),
        ("sha256", 1, "hash of model.onnx is 1, expected text"),
    ],
)
def test_file_record_of_another_type_is_refused(
    path: Path, edit_manifest: Callable[..., None], key: str, value: object, reason: str
) -> None:
    edit_manifest(lambda raw: raw["files"][GRAPH].update({key: value}))
    assert f"is damaged ({reason})" in refuse(path)


@pytest.mark.parametrize("change", [{"layer": 0.0}, {"layer": False}, {"dtype": "float16"}])
def test_state_that_is_not_the_configs_is_refused(
    path: Path, edit_manifest: Callable[..., None], change: dict[str, Any]
) -> None:
    edit_manifest(lambda raw: raw["states"][0].update(change))
    assert "its states are not those of its config" in refuse(path)


def test_config_with_an_endless_width_is_refused(
    path: Path, edit_manifest: Callable[..., None]
) -> None:
    endless = {
        "block_auto_adjust_ff_dim": True,
        "block_multiple_of": 2,
        "block_ffn_dim_multiplier": 1e308,
    }
    edit_manifest(lambda raw: raw["config"].update(endless))
    assert "damaged" in refuse(path)


def test_manifest_nested_too_deeply_is_refused(path: Path) -> None:
    (path / MANIFEST).write_text("[" * 200_000)
    assert "damaged" in refuse(path)


@pytest.mark.parametrize("overwrite", [False, True])
def test_folder_one_stands_in_is_refused_before_any_work(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, overwrite: bool
) -> None:
    below = tmp_path / "below"
    below.mkdir()
    monkeypatch.chdir(below)
    for place in (Path("."), Path(".."), tmp_path):
        with pytest.raises(BundleError, match="where you are or above it"):
            check_destination(place, overwrite)
    assert list(below.iterdir()) == []


def test_file_a_user_put_into_a_bundle_is_not_lost(path: Path) -> None:
    (path / "my-notes.txt").write_text("mine")
    before = contents(path.parent)
    with pytest.raises(BundleError, match=r"also holds my-notes\.txt"):
        write(path, overwrite=True)
    assert contents(path.parent) == before


@pytest.mark.parametrize("manifest", ["{", '{"schema_version": 1, "quantization": [], "files": 1}'])
def test_damaged_bundle_is_replaced_only_where_nothing_else_would_be_lost(
    path: Path, manifest: str
) -> None:
    (path / MANIFEST).write_text(manifest)
    (path / "thesis.txt").write_text("mine")
    before = contents(path.parent)
    with pytest.raises(BundleError, match=r"also holds thesis\.txt"):
        write(path, overwrite=True)
    assert contents(path.parent) == before
    (path / "thesis.txt").unlink()
    write(path, overwrite=True)
    open_bundle(path).verify()


def test_demo_bundle_is_replaced_with_its_source(path: Path) -> None:
    (path / DEMO_SOURCE).write_text("{}")
    write(path, overwrite=True)
    assert not (path / DEMO_SOURCE).exists()


def test_folder_below_a_bundle_is_not_lost(path: Path) -> None:
    (path / DEMO_SOURCE).mkdir()
    with pytest.raises(BundleError, match="also holds demo_source"):
        write(path, overwrite=True)


def test_every_side_file_may_be_in_a_damaged_bundle() -> None:
    assert {CONFIG_FILE, *SIDE_FILES} <= bundle_module._POSSIBLE_FILES
