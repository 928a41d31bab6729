"""Whole comparisons of tiny models: references that are kept, found again, and lost."""

from __future__ import annotations

import json
import shutil
import sys
from pathlib import Path
from typing import Any

import pytest

from lfm2_deploy.compare import reference_cache
from lfm2_deploy.compare.room import make_room
from lfm2_deploy.compare.scorer import RuntimeScorer
from lfm2_deploy.errors import GenerationError
from runtimes.streamed import StreamedScorer

from .whole import Checkpoints, cache, compare

__all__ = ["cache"]  # a fixture
pytestmark = pytest.mark.usefixtures("cache")


def test_second_comparison_reads_no_weights(
    checkpoints: Checkpoints, bundle_of: Any, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    bundle, good = bundle_of("dense", "int4").path, f"torch:{checkpoints['dense']}"
    first = compare(bundle, reference=good)

    def fail(*anything: object) -> None:
        raise AssertionError("the reference was computed again")

    monkeypatch.setattr(StreamedScorer, "score", fail)
    second = compare(bundle, reference=good)
    assert second.reference.cached
    assert second.subjects == first.subjects
    assert len([folder for folder in cache.iterdir() if folder.is_dir()]) == 1


def test_same_weights_under_another_config_are_another_reference(
    checkpoints: Checkpoints, tmp_path: Path
) -> None:
    copy = shutil.copytree(checkpoints["dense"], tmp_path / "copy")
    good = f"torch:{checkpoints['dense']}"
    assert not compare(good, reference=f"torch:{copy}").reference.cached
    config = json.loads((copy / "config.json").read_text())
    config["norm_eps"] = 0.5
    (copy / "config.json").write_text(json.dumps(config))
    report = compare(good, reference=f"torch:{copy}")
    assert not report.reference.cached
    assert report.subjects[0].scores is not None
    assert report.subjects[0].scores.divergence.mean.value > 1e-6


def test_copy_of_a_checkpoint_finds_the_same_reference(
    checkpoints: Checkpoints, bundle_of: Any, cache: Path, tmp_path: Path
) -> None:
    bundle = bundle_of("dense", "int4").path
    assert not compare(bundle, reference=f"torch:{checkpoints['dense']}").reference.cached
    copy = shutil.copytree(checkpoints["dense"], tmp_path / "copy", copy_function=shutil.copyfile)
    assert compare(bundle, reference=f"torch:{copy}").reference.cached
    assert len([folder for folder in cache.iterdir() if folder.is_dir()]) == 1


@pytest.mark.parametrize("name", ["logits.f32", "states.safetensors", "record.json"])
def test_damaged_reference_is_made_anew(
    checkpoints: Checkpoints, bundle_of: Any, cache: Path, name: str
) -> None:
    bundle, good = bundle_of("dense", "int4").path, f"torch:{checkpoints['dense']}"
    first = compare(bundle, reference=good)
    (folder,) = (folder for folder in cache.iterdir() if folder.is_dir())
    data = bytearray((folder / name).read_bytes())
    data[len(data) // 2] ^= 1
    (folder / name).write_bytes(data)
    second = compare(bundle, reference=good)
    assert second.reference.cached is False
    assert second.subjects == first.subjects
    assert compare(bundle, reference=good).reference.cached


def test_other_tokens_are_another_reference(
    checkpoints: Checkpoints, bundle_of: Any, cache: Path
) -> None:
    bundle, good = bundle_of("dense", "int4").path, f"torch:{checkpoints['dense']}"
    compare(bundle, reference=good)
    assert compare(bundle, reference=good, length=16).reference.cached is False
    assert len([folder for folder in cache.iterdir() if folder.is_dir()]) == 2


def test_oldest_references_make_room(
    checkpoints: Checkpoints, bundle_of: Any, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    bundle, good = bundle_of("dense", "int4").path, f"torch:{checkpoints['dense']}"
    compare(bundle, reference=good)
    monkeypatch.setattr(reference_cache, "MOST_BYTES", 100_000)
    compare(bundle, reference=good, length=16)
    assert len([folder for folder in cache.iterdir() if folder.is_dir()]) == 1


def test_without_the_cache_nothing_stays(
    checkpoints: Checkpoints, bundle_of: Any, cache: Path
) -> None:
    bundle, good = bundle_of("dense", "int4").path, f"torch:{checkpoints['dense']}"
    assert compare(bundle, reference=good, cache=False).reference.cached is False
    assert list(cache.iterdir()) == []


def test_nothing_is_kept_where_the_cache_cannot_be_written(
    checkpoints: Checkpoints, bundle_of: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    (tmp_path / "file").write_text("")  # not even an administrator makes a folder in a file
    monkeypatch.setattr(reference_cache, "find_folder", lambda: tmp_path / "file" / "references")
    bundle, good = bundle_of("dense", "int4").path, f"torch:{checkpoints['dense']}"
    with pytest.raises(GenerationError, match=r"nothing can be kept in .*file.*add --no-cache"):
        compare(bundle, reference=good)
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path / "temporary"))
    (tmp_path / "temporary").mkdir()
    report = compare(bundle, reference=good, cache=False)
    assert report.subjects[0].scores is not None
    assert list((tmp_path / "temporary").iterdir()) == []


def test_reference_that_another_process_removes_is_read_to_its_end(
    checkpoints: Checkpoints, bundle_of: Any, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if sys.platform == "win32":
        pytest.skip("Windows removes no file that is open")
    bundle, good = bundle_of("dense", "int4").path, f"torch:{checkpoints['dense']}"
    first = compare(bundle, reference=good)
    score = RuntimeScorer.score

    def evict_and_score(self: RuntimeScorer, *given: Any) -> Any:
        make_room(cache, 1, 0)
        assert not [folder for folder in cache.iterdir() if folder.is_dir()]
        return score(self, *given)

    monkeypatch.setattr(RuntimeScorer, "score", evict_and_score)
    second = compare(bundle, reference=good)
    assert second.reference.cached
    assert second.subjects == first.subjects
