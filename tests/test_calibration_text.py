"""Rows of tokens to calibrate on: of one length, each begun as the model's texts are."""

from __future__ import annotations

from pathlib import Path

import pytest

from lfm2_deploy import export
from lfm2_deploy.calibration_text import (
    BUILT_IN,
    MOST_ROWS,
    MOST_WEIGHT_ROWS,
    ROW,
    choose_calibration,
    choose_text,
    measure_novelty,
)
from lfm2_deploy.checkpoint import open_checkpoint
from lfm2_deploy.demo import DEMO_MODEL
from lfm2_deploy.errors import ExportError
from lfm2_deploy.sample_text import PRIDE_AND_PREJUDICE
from lfm2_deploy.tokenizer import Tokenizer

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
    [
        (b"", "is empty: give a text"),
        (b" \n\n ", "is empty: give a text"),
        (b"\xff\xfe\xff", "is not UTF-8"),
        (None, "cannot be read"),
    ],
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


def test_built_in_text_for_weights_fills_all_rows_and_is_not_the_page_that_verify_scores() -> None:
    text = choose_text(DEMO, None)
    assert text.name == "the built-in text"
    assert len(text.sha256) == 64
    assert [len(row) for row in text.rows] == [ROW] * MOST_WEIGHT_ROWS
    whole = BUILT_IN.read_text(encoding="utf-8")
    pieces = [PRIDE_AND_PREJUDICE[at : at + 60] for at in range(0, 1500, 20)]
    assert not any(piece in whole for piece in pieces)


def test_rows_for_weights_are_spread_over_a_long_file(tmp_path: Path) -> None:
    file = tmp_path / "long.txt"
    file.write_text("".join(f"Line {n} of the file. " for n in range(200_000)), encoding="utf-8")
    text = choose_text(DEMO, file)
    tokenizer = Tokenizer.from_folder(DEMO_MODEL)
    ends = tokenizer.decode(text.rows[0]), tokenizer.decode(text.rows[-1])
    assert "Line 0 of" in ends[0]
    assert any(f"Line 19{digit}" in ends[1] for digit in "6789")
    assert text.name == "long.txt"


def test_wide_models_take_fewer_rows() -> None:
    wide = open_checkpoint("synthetic:LFM2-8B-A1B")
    assert len(choose_text(wide, None).rows) == 8  # without a tokenizer
    assert choose_text(open_checkpoint("synthetic:tiny-moe"), None).name == "random tokens"


def test_text_that_tells_little_is_remarked_on(tmp_path: Path) -> None:
    assert choose_text(DEMO, None).remark == ""
    few, often = tmp_path / "few.txt", tmp_path / "often.txt"
    few.write_text("A few words, and no more.", encoding="utf-8")
    often.write_text("The same sentence, over and over. " * 3000, encoding="utf-8")
    assert "little better than without a text" in choose_text(DEMO, few).remark
    assert "of which say something new" in choose_text(DEMO, often).remark
    # Random tokens are for models without a tokenizer, who cannot be told to give a text.
    assert choose_text(open_checkpoint("synthetic:tiny-moe"), None).remark == ""


def test_novelty_is_the_share_of_tokens_that_follow_two_others_for_the_first_time() -> None:
    assert measure_novelty([[1, 2, 3, 4], [1, 2, 3, 9]]) == 3 / 4
    assert measure_novelty([[5]]) == 1
    assert measure_novelty([[5], [5]]) == 1 / 2
