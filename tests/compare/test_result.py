"""Reports into JSON and back."""

from __future__ import annotations

import json
import math

import pytest

from lfm2_deploy.compare.result import (
    Estimate,
    Protocol,
    ReferenceInfo,
    Report,
    StateError,
    StateErrors,
    StateRow,
    SubjectInfo,
    SubjectResult,
    Verdict,
)
from lfm2_deploy.compare.result_json import describe, read_report

REPORT = Report(
    reference=ReferenceInfo("m", "torch", "torch 2", Estimate(12.5, 0.25), 0.0, cached=True),
    protocol=Protocol("text", 2, 8, 4, 6, 1, "windows", ("short",)),
    subjects=(
        SubjectResult(
            SubjectInfo("a", "./a", "bundle", "m", "int4", "cpu", "ort", "cpu", 12),
            states=StateErrors((StateRow(16, (StateError(0, "conv", 0.5),)),), None),
        ),
        SubjectResult(
            SubjectInfo("b", "./b", "torch", "m", "fp32", "", "reference", "cpu", None),
            failure="out of memory",
        ),
    ),
    verdict=Verdict(False, "", ("b: out of memory",)),
    layer_types=("conv", "full_attention"),
    machine={"system": "Linux"},
    versions={"numpy": "2"},
    created="2026-11-26T00:00:00+00:00",
)


def test_report_survives_json() -> None:
    assert read_report(json.loads(json.dumps(describe(REPORT)))) == REPORT


def test_nan_is_null_and_nan_again() -> None:
    unsure = Report(
        **{
            **{name: getattr(REPORT, name) for name in Report.__slots__},
            "reference": ReferenceInfo("m", "base", "", Estimate(1.0, math.nan), 0.0, cached=False),
        }
    )
    record = describe(unsure)
    assert record["reference"]["perplexity"] == {"value": 1.0, "error": None}
    assert math.isnan(read_report(record).reference.perplexity.error)


def test_other_schema_is_refused() -> None:
    with pytest.raises(ValueError, match="schema is 99, expected 1"):
        read_report({**describe(REPORT), "schema": 99})


def test_unknown_and_missing_fields_are_refused() -> None:
    record = describe(REPORT)
    record["verdict"]["mood"] = "good"
    with pytest.raises(ValueError, match="Verdict has mood too much or too little"):
        read_report(record)
