"""GGUF files of the Hub, by the name of their type or of the file."""

from __future__ import annotations

import shutil
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

import huggingface_hub
import pytest

from lfm2_deploy.checkpoint import is_hub_id, open_checkpoint
from lfm2_deploy.checkpoint.source import is_gguf
from lfm2_deploy.checkpoint.synthetic import open_synthetic
from lfm2_deploy.contracts import Origin
from lfm2_deploy.errors import SourceError
from lfm2_deploy.recommended import complete_generation_config

from ..gguf_files import write_gguf  # noqa: TID252

COMMIT = "0123456789abcdef0123456789abcdef01234567"
REPOSITORY = "LiquidAI/LFM2-Tiny-GGUF"
NAMES = (
    "LFM2-Tiny-F16.gguf", "LFM2-Tiny-Q4_0.gguf", "mmproj-LFM2-Tiny-Q4_0.gguf", "a-Q8_0.gguf",
    "b-Q8_0.gguf",
)  # fmt: skip


@pytest.fixture
def asked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """What was asked of a Hub that has `NAMES`; of no connection to any other."""
    model = write_gguf(open_synthetic("tiny-dense"), tmp_path / "model.gguf")
    snapshot, seen = tmp_path / "snapshots" / COMMIT, list[str]()

    def download(model_id: str, *, revision: str | None, allow_patterns: list[str]) -> str:
        seen.append(f"{model_id}@{revision}")
        snapshot.mkdir(parents=True, exist_ok=True)
        for name in NAMES:
            if any(fnmatchcase(name, pattern) for pattern in allow_patterns):
                shutil.copy(model, snapshot / name)
        return str(snapshot)

    monkeypatch.setattr(huggingface_hub, "snapshot_download", download)
    monkeypatch.setattr(huggingface_hub.HfApi, "model_info", lambda *_, **__: None)
    monkeypatch.chdir(tmp_path)
    return seen


@pytest.mark.parametrize("name", [":Q4_0", ":q4_0", "/LFM2-Tiny-Q4_0.gguf"])
def test_one_file_is_found_and_its_commit_recorded(asked: list[str], name: str) -> None:
    reports: list[tuple[str, int, int]] = []
    found = open_checkpoint(
        REPOSITORY + name, revision="main", progress=lambda *step: reports.append(step)
    )
    assert asked == [f"{REPOSITORY}@main"]
    assert found.origin == Origin("hub", f"{REPOSITORY}/LFM2-Tiny-Q4_0.gguf", COMMIT)
    assert [step[1:] for step in reports] == [(0, 0), (1, 1)]
    # What the origin says opens the same again.
    assert open_checkpoint(found.origin.name, revision=COMMIT).origin == found.origin


@pytest.mark.parametrize(
    ("name", "told"),
    [
        (":Q6_K", "was not found: LiquidAI/LFM2-Tiny-GGUF has no such GGUF file; see https://"),
        ("/absent.gguf", "was not found: LiquidAI/LFM2-Tiny-GGUF has no such GGUF file"),
        (":Q8_0", "may mean a-Q8_0.gguf or b-Q8_0.gguf; name one as LiquidAI/.*/a-Q8_0.gguf"),
    ],
)
def test_no_file_or_several_are_told(asked: list[str], name: str, told: str) -> None:
    with pytest.raises(SourceError, match=told):
        open_checkpoint(REPOSITORY + name)
    assert asked


def test_offline_without_the_file_in_the_cache_is_told(
    asked: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: Any, **__: Any) -> None:
        raise ConnectionError("no network")

    monkeypatch.setattr(huggingface_hub.HfApi, "model_info", fail)
    with pytest.raises(SourceError, match="is not complete in the local cache"):
        open_checkpoint(f"{REPOSITORY}:Q6_K")


def test_repository_without_config_names_the_form(asked: list[str]) -> None:
    with pytest.raises(SourceError, match=f"name a GGUF file as {REPOSITORY}:Q4_0"):
        open_checkpoint(REPOSITORY)


def test_what_lies_here_wins_and_a_missing_file_is_no_repository(
    asked: list[str], tmp_path: Path
) -> None:
    assert open_checkpoint("model.gguf").origin.kind == "file"
    place = tmp_path / "owner" / "name"
    place.mkdir(parents=True)
    shutil.copy("model.gguf", place / "x.gguf")
    assert open_checkpoint("owner/name/x.gguf").origin.kind == "file"
    with pytest.raises(SourceError, match=r"'folder/absent\.gguf' was not found"):
        open_checkpoint("folder/absent.gguf")
    with pytest.raises(SourceError, match="only Hub models have revisions"):
        open_checkpoint("model.gguf", revision="main")
    assert not asked
    assert not is_hub_id("folder/absent.gguf")
    assert is_gguf("model.gguf")
    assert not is_gguf("owner/name")


def test_settings_of_the_model_card_are_found_by_the_repository() -> None:
    found = complete_generation_config("LiquidAI/LFM2-350M-GGUF/LFM2-350M-Q4_0.gguf", {})
    assert found == complete_generation_config("LiquidAI/LFM2-350M", {}) != {}
