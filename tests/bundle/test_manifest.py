"""Nothing in a manifest is believed before it is checked."""

from __future__ import annotations

from collections.abc import Callable
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
    Manifest,
    check_destination,
    open_bundle,
)
from lfm2_deploy.checkpoint.folder import CONFIG_FILE, SIDE_FILES
from lfm2_deploy.errors import BundleError

from .made_up import contents, refuse, write


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


# Bundles of version 0.1 do not have these.
LATER_KEYS = ("graphs", "chunk", "blobs", "rounding", "weights", "readers")


@pytest.mark.parametrize("key", [k for k in Manifest.__dataclass_fields__ if k not in LATER_KEYS])
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


@pytest.mark.parametrize(
    "name",
    ["../outside", "a/b/c", "a/..", "/a", "a/", "C:/b", "C:secret", "..", "a\\b", "", ".", "a\nb"],
)
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
