"""What a manifest says of rounding is read back as it was written, and checked."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import pytest

from lfm2_deploy.bundle import open_bundle
from lfm2_deploy.quantization_record import (
    LayerError,
    QuantizationRecord,
    TensorError,
    parse_record,
)

from .made_up import refuse

RECORD = QuantizationRecord(
    method="gptq",
    text="mine.txt",
    text_sha256="ab",
    tokens=512,
    rare_below=64,
    max_size_bytes=10**9,
    tensors=(TensorError("model.layers.0.conv.in_proj.weight", 4, 32, 0.08, 0.08),),
    layers=(LayerError(0, 0.05, 12, 40, 3),),
)


def test_record_comes_back_as_it_was_written() -> None:
    assert parse_record(json.loads(json.dumps(asdict(RECORD)))) == RECORD


def test_bundle_with_a_record_opens_and_one_without_has_none(
    path: Path, edit_manifest: Callable[..., None]
) -> None:
    assert open_bundle(path).manifest.rounding is None
    edit_manifest(lambda raw: raw.update(rounding=asdict(RECORD)))
    assert open_bundle(path).manifest.rounding == RECORD


@pytest.mark.parametrize(
    "spoilt",
    [
        7,
        {},
        {"method": None},
        {"method": "gptq", "more": 1},
        {"method": "gptq", "tokens": -1},
        {"method": "gptq", "tokens": True},
        {"method": "gptq", "max_size_bytes": 10**400},
        {"method": "gptq", "text": "x" * 10_000},
        {"method": "gptq", "tensors": {}},
        {"method": "gptq", "tensors": [{"name": "x"}]},
        {"method": "gptq", "layers": [{"layer": 0, "error": "much"}]},
    ],
)
def test_record_that_is_not_one_is_damage(
    path: Path, edit_manifest: Callable[..., None], spoilt: Any
) -> None:
    edit_manifest(lambda raw: raw.update(rounding=spoilt))
    assert "damaged" in refuse(path)


@pytest.mark.parametrize("error", [float("nan"), float("inf"), -0.1, 1e300, 10**400])
def test_error_that_is_no_share_is_refused(error: float) -> None:
    raw = asdict(replace(RECORD, layers=(LayerError(0, error),)))
    raw = {**raw, "layers": list(raw["layers"]), "tensors": list(raw["tensors"])}
    with pytest.raises(ValueError, match="error of a rounding record"):
        parse_record(raw)
