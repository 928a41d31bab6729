"""Whole comparisons of tiny models, with a cache of the test's own."""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from lfm2_deploy.api import compare_models
from lfm2_deploy.compare import reference_cache
from lfm2_deploy.compare.measure import Wish
from lfm2_deploy.compare.result import Report
from lfm2_deploy.compare.run import Settings

Checkpoints = Mapping[str, Path]


def settings(**changes: Any) -> Settings:
    few = {"chunks": 2, "length": 24, "wish": Wish(2, 2, 6), "cost": False}
    return Settings(**{**few, **changes})


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder of references, empty and for one test."""
    folder = tmp_path / "references"
    monkeypatch.setattr(reference_cache, "find_folder", lambda: folder)
    return folder


def spoil(checkpoint: Path, place: Path, tensor: str) -> Path:
    """A copy with the rows of one tensor in a wrong order."""
    copy = shutil.copytree(checkpoint, place)
    tensors = load_file(copy / "model.safetensors")
    tensors[f"model.{tensor}"] = np.roll(tensors[f"model.{tensor}"], 1, axis=0)
    save_file(tensors, copy / "model.safetensors", {"format": "pt"})
    return copy


def compare(*subjects: object, reference: object = None, **changes: Any) -> Report:
    return compare_models(
        [str(subject) for subject in subjects],
        reference=None if reference is None else str(reference),
        settings=settings(**changes),
        threads=1,
    )
