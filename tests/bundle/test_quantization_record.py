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
    SizeChoice,
    TensorError,
    UnitChoice,
    WeightError,
    parse_record,
)

from .made_up import refuse

UNIT = UnitChoice(
    0, "mixer", "8 bits, groups of 32", "8", "32", 10**4, 1e-5, "4 bits, groups of 128", "4", "128",
    0.002,
)  # fmt: skip
RECORD = QuantizationRecord(
    method="gptq",
    text="mine.txt",
    text_sha256="ab",
    tokens=512,
    rare_below=64,
    max_size_bytes=10**9,
    tensors=(TensorError("model.layers.0.conv.in_proj.weight", 4, 32, 0.08, 0.08),),
    layers=(LayerError(0, 0.05, 12, 40, 3),),
    weights=(WeightError("model.layers.0.conv.in_proj.weight", 4, 32, 0.1, 0.1),),
    choice=SizeChoice(10**6, 10**5, 0.01, "mine.txt", 256, (UNIT,)),
)
WEIGHT = asdict(RECORD.weights[0])
CHOICE = {"budget_bytes": 1, "size_bytes": 1, "cost": 0.1, "text": "", "tokens": 1, "units": []}


def test_record_comes_back_as_it_was_written() -> None:
    assert parse_record(json.loads(json.dumps(asdict(RECORD)))) == RECORD


def test_record_of_an_older_version_has_no_weights_and_no_choice() -> None:
    raw = json.loads(json.dumps(asdict(RECORD)))
    del raw["weights"], raw["choice"]
    assert parse_record(raw) == replace(RECORD, weights=(), choice=None)


def test_errors_are_of_one_kind() -> None:
    assert RECORD.errors == RECORD.tensors
    assert replace(RECORD, tensors=(), layers=()).errors == RECORD.weights
    assert RECORD.has_few_tokens
    assert not replace(RECORD, tokens=8192).has_few_tokens
    # Without a text there is none that could be short.
    assert not QuantizationRecord("rtn", weights=RECORD.weights).has_few_tokens


def test_table_has_a_choice_of_no_layer() -> None:
    assert RECORD.choice is not None
    choice = replace(RECORD.choice, units=(replace(UNIT, layer=None, kind="embedding"),))
    record = replace(RECORD, choice=choice)
    assert parse_record(json.loads(json.dumps(asdict(record)))) == record


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
        {"method": "rtn", "weights": {}},
        {"method": "rtn", "weights": [{"name": "x"}]},
        {"method": "rtn", "weights": [{**WEIGHT, "error": -1.0}]},
        {"method": "rtn", "weights": [{**WEIGHT, "bits": "4"}]},
        {"method": "rtn", "choice": 7},
        {"method": "rtn", "choice": {}},
        {"method": "rtn", "choice": {**CHOICE, "units": [7]}},
        {"method": "rtn", "choice": {**CHOICE, "tokens": 1.5}},
        {"method": "rtn", "choice": {**CHOICE, "units": [{**asdict(UNIT), "layer": "0"}]}},
        {"method": "rtn", "choice": {**CHOICE, "units": [{**asdict(UNIT), "cost": None}]}},
    ],
)
def test_record_that_is_not_one_is_damage(
    path: Path, edit_manifest: Callable[..., None], spoilt: Any
) -> None:
    edit_manifest(lambda raw: raw.update(rounding=spoilt))
    assert "damaged" in refuse(path)


@pytest.mark.parametrize("error", [float("nan"), float("inf"), -0.1, 1e300, 10**400])
def test_error_that_is_no_share_is_refused(error: float) -> None:
    raw = json.loads(json.dumps(asdict(replace(RECORD, layers=(LayerError(0, error),)))))
    with pytest.raises(ValueError, match="error of a rounding record"):
        parse_record(raw)
