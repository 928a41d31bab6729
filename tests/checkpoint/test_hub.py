from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from fnmatch import fnmatch
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import huggingface_hub
import pytest
from huggingface_hub import errors

from lfm2_deploy.checkpoint import open_checkpoint
from lfm2_deploy.checkpoint.synthetic import SyntheticCheckpoint
from lfm2_deploy.contracts import FloatArray, Origin
from lfm2_deploy.errors import RuntimeUnavailableError, SourceError, UnsupportedModelError

COMMIT = "0123456789abcdef0123456789abcdef01234567"
MODEL = "LiquidAI/LFM2-Tiny"
Save = Callable[..., Path]


class FakeHub:
    """Stands for `snapshot_download`: copies what matches from a folder into a cache."""

    def __init__(self, repository: Path, cache: Path) -> None:
        self.repository = repository
        self.snapshot = cache / "models--x" / "snapshots" / COMMIT
        self.revisions: list[str | None] = []

    def __call__(self, model: str, *, revision: str | None, allow_patterns: list[str]) -> str:
        self.revisions.append(revision)
        self.snapshot.mkdir(parents=True, exist_ok=True)
        for file in self.repository.iterdir():
            if any(fnmatch(file.name, pattern) for pattern in allow_patterns):
                shutil.copy(file, self.snapshot)
        return str(self.snapshot)


@pytest.fixture
def repository(
    tiny_moe: SyntheticCheckpoint,
    read_all: Callable[..., dict[str, FloatArray]],
    save_shards: Save,
) -> Path:
    folder = save_shards(tiny_moe.raw_config, read_all(tiny_moe))
    for name in ("tokenizer.json", "README.md", "pytorch_model.bin", "model.gguf"):
        (folder / name).write_text("{}")
    return folder


@pytest.fixture
def hub(repository: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> FakeHub:
    fake = FakeHub(repository, tmp_path / "cache")
    monkeypatch.setattr(huggingface_hub, "snapshot_download", fake)
    monkeypatch.setattr(huggingface_hub.HfApi, "model_info", lambda *_, **__: None)
    return fake


def failing(error: Exception) -> Callable[..., str]:
    def download(*_: Any, **__: Any) -> str:
        raise error

    return download


def http_error(kind: type[errors.HfHubHTTPError]) -> errors.HfHubHTTPError:
    response: Any = SimpleNamespace(headers={}, request=None, status_code=500)
    return kind("first line\n\nsecond line", response=response)


def test_hub_model_reads_and_records_its_commit(
    hub: FakeHub, tiny_moe: SyntheticCheckpoint
) -> None:
    reports: list[tuple[str, int, int]] = []
    opened = open_checkpoint(
        MODEL, revision="v1", progress=lambda what, done, total: reports.append((what, done, total))
    )
    assert opened.origin == Origin(kind="hub", name=MODEL, revision=COMMIT)
    assert opened.config == tiny_moe.config
    assert set(opened.side_files) == {"tokenizer.json"}
    # The weights are those of the commit that the config came from.
    assert hub.revisions == ["v1", COMMIT]
    assert reports == [(f"download {MODEL}", 0, 0), (f"download {MODEL}", 1, 1)]


def test_only_what_is_needed_is_downloaded(hub: FakeHub) -> None:
    open_checkpoint(MODEL)
    assert {file.name for file in hub.snapshot.iterdir()} == {
        "config.json",
        "tokenizer.json",
        "model.safetensors.index.json",
        "model-00001-of-00002.safetensors",
        "model-00002-of-00002.safetensors",
    }


def test_unusable_model_is_refused_before_its_weights_come(hub: FakeHub) -> None:
    raw = json.loads((hub.repository / "config.json").read_text())
    vision = {"model_type": "lfm2_vl", "text_config": raw}
    (hub.repository / "config.json").write_text(json.dumps(vision))
    with pytest.raises(
        UnsupportedModelError, match=rf"{MODEL} is a vision-language .*export {MODEL} --part text"
    ):
        open_checkpoint(MODEL)
    assert not list(hub.snapshot.glob("*.safetensors"))


def test_bad_adapter_is_refused_before_any_download(hub: FakeHub, tmp_path: Path) -> None:
    with pytest.raises(SourceError, match=r"no adapter_config.json"):
        open_checkpoint(MODEL, adapter=tmp_path / "absent")
    assert not hub.revisions


def test_repository_of_other_files_is_explained(hub: FakeHub) -> None:
    (hub.repository / "config.json").unlink()
    with pytest.raises(SourceError, match=f"{MODEL} has no config.json .*GGUF"):
        open_checkpoint(MODEL)


def test_pickled_repository_is_refused(hub: FakeHub) -> None:
    for file in hub.repository.glob("*.safetensors"):
        file.unlink()
    with pytest.raises(SourceError, match=f"{MODEL} came without .*pickled.* never opened"):
        open_checkpoint(MODEL)


@pytest.mark.parametrize(
    ("error", "expected"),
    [
        (http_error(errors.GatedRepoError), f"{MODEL} is gated: .*co/{MODEL}, then set HF_TOKEN"),
        (http_error(errors.RepositoryNotFoundError), f"{MODEL} was not found on the Hub"),
        (http_error(errors.RevisionNotFoundError), "has no revision 'v9'; see .*/commits"),
        (errors.LocalEntryNotFoundError("x"), "at revision v9 is not complete in the local cache"),
        (errors.IncompleteSnapshotError("x", "y"), "HF_HUB_OFFLINE is set.*pass a local folder"),
        (errors.HFValidationError("x"), "is not a valid Hub id: expected 'owner/name'"),
        (http_error(errors.HfHubHTTPError), r"\(HfHubHTTPError: first line second line\); try"),
        (OSError(28, "No space left on device"), "No space left on device.*what has arrived"),
    ],
)
def test_each_failure_is_one_line_that_says_what_to_do(
    error: Exception, expected: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(huggingface_hub, "snapshot_download", failing(error))
    with pytest.raises(SourceError, match=expected) as caught:
        open_checkpoint(MODEL, revision="v9")
    assert "\n" not in str(caught.value)
    assert caught.value.__cause__ is error


def test_missing_library_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    with pytest.raises(RuntimeUnavailableError, match="pip install 'lfm2-deploy"):
        open_checkpoint(MODEL)


@pytest.mark.parametrize(
    ("absent", "revision", "error", "expected"),
    [
        ("*.safetensors*", None, OSError("no route"), f"{MODEL} is not complete in the local"),
        ("*-00002-*", None, OSError("no route"), "the Hub cannot be reached"),
        ("*.index.json", "v9", OSError("no route"), f"{MODEL} at revision v9 is not complete"),
        ("config.json", None, OSError("no route"), f"{MODEL} is not complete in the local"),
        ("*-00002-*", None, http_error(errors.HfHubHTTPError), "the Hub cannot be reached"),
        ("*-00002-*", None, http_error(errors.GatedRepoError), "is gated: ask for access"),
    ],
)
def test_cache_that_the_hub_could_not_complete_is_not_taken_for_the_repository(
    absent: str,
    revision: str | None,
    error: Exception,
    expected: str,
    hub: FakeHub,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    for file in hub.repository.glob(absent):
        file.unlink()
    monkeypatch.setattr(huggingface_hub.HfApi, "model_info", failing(error))
    with pytest.raises(SourceError, match=expected) as caught:
        open_checkpoint(MODEL, revision=revision)
    assert "pickled" not in str(caught.value)
    assert COMMIT not in str(caught.value)


def test_damaged_index_is_no_matter_of_the_hub(
    hub: FakeHub, monkeypatch: pytest.MonkeyPatch
) -> None:
    (hub.repository / "model.safetensors.index.json").write_text("{")
    monkeypatch.setattr(huggingface_hub.HfApi, "model_info", failing(OSError("no route")))
    with pytest.raises(SourceError, match="is not readable JSON"):
        open_checkpoint(MODEL)


def test_repository_without_a_shard_is_told_so(hub: FakeHub) -> None:
    (hub.repository / "model-00002-of-00002.safetensors").unlink()
    with pytest.raises(SourceError, match=r"lacks 1 of 2 files that model.safetensors.index"):
        open_checkpoint(MODEL)


def test_offline_opens_what_is_cached_and_names_what_is_not(
    repository: Path, tmp_path: Path
) -> None:
    cached = tmp_path / "hub" / ("models--" + MODEL.replace("/", "--"))
    (cached / "refs").mkdir(parents=True)
    (cached / "refs" / "main").write_text(COMMIT)
    snapshot = shutil.copytree(repository, cached / "snapshots" / COMMIT)
    code = f"""
from pathlib import Path
from lfm2_deploy.checkpoint import open_checkpoint
print(open_checkpoint({MODEL!r}).origin.revision)
for file in Path({str(snapshot)!r}).glob("*.safetensors*"):
    file.unlink()
for model in ({MODEL!r}, "owner/absent"):
    try:
        open_checkpoint(model)
    except Exception as error:
        print(type(error).__name__, error)
"""
    offline = {"HF_HUB_OFFLINE": "1", "HF_HUB_CACHE": str(tmp_path / "hub")}
    finished = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, env=os.environ | offline
    )
    found, described, absent = finished.stdout.splitlines()
    assert found == COMMIT
    assert described.startswith(f"SourceError {MODEL} is not complete in the local cache")
    assert absent.startswith("SourceError owner/absent is not complete in the local cache")
