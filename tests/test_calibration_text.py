"""Rows of tokens to calibrate on: of one length, each begun as the model's texts are."""

from __future__ import annotations

from pathlib import Path

import pytest

from lfm2_deploy import export
from lfm2_deploy.calibration_text import MOST_ROWS, ROW, choose_calibration
from lfm2_deploy.checkpoint import open_checkpoint
from lfm2_deploy.demo import DEMO_MODEL
from lfm2_deploy.errors import ExportError

DEMO = open_checkpoint(str(DEMO_MODEL))
BOS = 1


def test_built_in_text_is_cut_into_rows_of_one_length() -> None:
    rows = choose_calibration(DEMO, None)
    assert len(rows) == 2
    assert len({len(row) for row in rows}) == 1
    assert 200 < len(rows[0]) <= ROW
    assert all(row[0] == BOS for row in rows)
    assert rows[0] != rows[1]


def test_long_text_is_read_in_part(tmp_path: Path) -> None:
    file = tmp_path / "long.txt"
    file.write_text("The rain in Spain stays mainly in the plain. " * 2000)
    rows = choose_calibration(DEMO, file)
    assert [len(row) for row in rows] == [ROW] * MOST_ROWS


def test_short_text_is_one_short_row(tmp_path: Path) -> None:
    file = tmp_path / "short.txt"
    file.write_text("Hello")
    (row,) = choose_calibration(DEMO, file)
    assert row[0] == BOS
    assert 1 < len(row) < 6


def test_model_without_a_tokenizer_gets_the_same_random_tokens_every_time() -> None:
    checkpoint = open_checkpoint("synthetic:tiny-dense")
    rows = choose_calibration(checkpoint, None)
    assert rows == choose_calibration(checkpoint, None)
    assert all(0 <= token < checkpoint.config.vocab_size for row in rows for token in row)


@pytest.mark.parametrize(
    ("content", "reason"),
    [(b"", "is empty: give a text"), (b"\xff\xfe\xff", "is not UTF-8"), (None, "cannot be read")],
)
def test_text_that_cannot_be_used_is_refused(
    content: bytes | None, reason: str, tmp_path: Path
) -> None:
    file = tmp_path / "text.txt"
    if content is not None:
        file.write_bytes(content)
    with pytest.raises(ExportError, match=reason):
        choose_calibration(DEMO, file)


def test_text_without_a_tokenizer_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ExportError, match=r"no tokenizer\.json.*leave --calibrate out"):
        choose_calibration(open_checkpoint("synthetic:tiny-dense"), tmp_path / "x.txt")


def test_text_for_a_target_that_rounds_nothing_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ExportError, match="target cpu rounds no activations in int8"):
        export("synthetic:tiny-dense", tmp_path / "out", precision="int8", calibrate="x.txt")
