from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from lfm2_deploy.bundle import CANARY
from lfm2_deploy.canary.record import (
    Canary,
    choose_sampled_ids,
    digest_logits,
    read_canary,
    write_canary,
)
from lfm2_deploy.errors import BundleError

VOCABULARY, CONTEXT = 200, 64


def test_written_canary_is_read_back_and_the_same_bytes_are_written(
    canary: Canary, tmp_path: Path
) -> None:
    write_canary(canary, tmp_path)
    first = (tmp_path / CANARY).read_bytes()
    assert read_canary(tmp_path, VOCABULARY, CONTEXT) == canary
    write_canary(read_canary(tmp_path, VOCABULARY, CONTEXT), tmp_path)
    assert (tmp_path / CANARY).read_bytes() == first
    assert len(first) < 100_000


def test_digest_holds_the_likeliest_tokens_and_the_sum() -> None:
    logits = np.array([0.0, 3.0, 1.0, 2.0], np.float32)
    digest = digest_logits(logits, [0, 2])
    assert digest.top_ids == (1, 3, 2, 0)
    assert digest.top == (3.0, 2.0, 1.0, 0.0)
    assert digest.sampled == (0.0, 1.0)
    # log(e^0 + e^1 + e^2 + e^3), to six digits
    assert digest.logsumexp == 3.44019
    assert digest.margin == 1.0


def test_sampled_ids_are_few_and_always_the_same() -> None:
    ids = choose_sampled_ids(65_536)
    assert ids == choose_sampled_ids(65_536)
    assert len(ids) == 48 == len(set(ids))
    assert choose_sampled_ids(3) == (0, 1, 2)


Damage = Callable[[dict[str, Any]], object]
DAMAGES: dict[str, Damage] = {
    "schema": lambda raw: raw.update(schema_version=3),
    "no rows": lambda raw: raw.pop("rows"),
    "empty rows": lambda raw: raw.update(rows=[]),
    "no noise": lambda raw: raw.update(noise=0),
    "noise beyond any float": lambda raw: raw.update(noise=10**400),
    "huge change": lambda raw: raw["signatures"][0]["changes"][0].__setitem__(0, 1e308),
    "sum below its parts": lambda raw: raw["rows"][0]["calls"][0]["expected"].update(
        logsumexp=-1e9
    ),
    "infinite noise": lambda raw: raw.update(noise=float("inf")),
    "text for a number": lambda raw: raw["rows"][0]["calls"][0]["expected"].update(logsumexp="1"),
    "id outside": lambda raw: raw["rows"][0]["calls"][0]["tokens"].append(VOCABULARY),
    "true for an id": lambda raw: raw["rows"][0]["calls"][0].update(tokens=[True]),
    "digest cut short": lambda raw: raw["rows"][0]["calls"][0]["expected"]["sampled"].pop(),
    "tops cut short": lambda raw: raw["rows"][0]["calls"][0]["expected"]["top"].pop(),
    "name that is none": lambda raw: raw["rows"][0].update(name="\x1b[31m"),
    "too long": lambda raw: raw["rows"][0]["calls"].extend(raw["rows"][0]["calls"] * 4),
    "signature of no row": lambda raw: raw["signatures"][0].update(row="nowhere"),
    "signature cut short": lambda raw: raw["signatures"][0]["changes"].pop(),
    "fault that cannot be shown": lambda raw: raw["signatures"][0].update(fault="a\nb"),
    "signature of a call that is not there": lambda raw: raw["signatures"][0]["calls"].__setitem__(
        0, 63
    ),
    "signatures without end": lambda raw: raw.update(signatures=raw["signatures"] * 1000),
    "noise of a call in words": lambda raw: raw["rows"][0]["calls"][0].update(noise="small"),
    "half an expert": lambda raw: raw.update(coverage={"experts": 8, "run": 0.5, "compared": 0}),
    "rows are a number": lambda raw: raw.update(rows=3),
    "a call is a list": lambda raw: raw["rows"][0]["calls"].insert(0, []),
}


@pytest.mark.parametrize("name", DAMAGES)
def test_damaged_canary_is_refused_in_one_line(canary: Canary, tmp_path: Path, name: str) -> None:
    write_canary(canary, tmp_path)
    raw = json.loads((tmp_path / CANARY).read_text())
    DAMAGES[name](raw)
    (tmp_path / CANARY).write_text(json.dumps(raw))
    with pytest.raises(BundleError, match=r"canary\.json .*export the model again") as caught:
        read_canary(tmp_path, VOCABULARY, CONTEXT)
    assert "\n" not in str(caught.value)


def test_canary_of_version_1_is_read(canary: Canary, tmp_path: Path) -> None:
    write_canary(canary, tmp_path)
    raw = json.loads((tmp_path / CANARY).read_text())
    raw["schema_version"] = 1
    del raw["coverage"]
    for row in raw["rows"]:
        for call in row["calls"]:
            del call["noise"]
    (signature,) = raw["signatures"]
    del signature["calls"], signature["unit"]
    (tmp_path / CANARY).write_text(json.dumps(raw))
    old = read_canary(tmp_path, VOCABULARY, CONTEXT)
    assert {call.noise for row in old.rows for call in row.calls} == {0.0}
    assert old.signatures[0].calls == tuple(range(len(old.rows[0].calls)))
    assert old.signatures[0].unit == 1.0
    assert old.coverage is None


def test_canary_that_is_not_there_is_refused(tmp_path: Path) -> None:
    with pytest.raises(BundleError, match=r"canary\.json"):
        read_canary(tmp_path, VOCABULARY, CONTEXT)
