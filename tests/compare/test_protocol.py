"""Windows of tokens: where they are cut, what is read, what is scored."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from lfm2_deploy.compare.base_file import BaseFile, write_base_file
from lfm2_deploy.compare.protocol import Windows, choose_windows, take_windows
from lfm2_deploy.demo import DEMO_MODEL
from lfm2_deploy.errors import GenerationError
from lfm2_deploy.tokenizer import Tokenizer


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    return Tokenizer.from_folder(DEMO_MODEL)


def test_second_half_is_scored_as_llama_cpp_does() -> None:
    windows = Windows(((1, 2, 3, 4, 5, 6, 7, 8), (11, 12, 13, 14, 15, 16, 17, 18)), 9, "")
    # n_ctx / 2 to n_ctx - 2: logits after position 4 predict the token at 5.
    assert (windows.length, windows.first, windows.positions) == (8, 4, 3)
    assert windows.targets(1) == [16, 17, 18]
    # The start token takes the first place, and the last token is never read.
    assert windows.read_by(1) == [9, 12, 13, 14, 15, 16, 17]
    assert Windows(windows.chunks, None, "").read_by(1)[0] == 11


def test_field_protocol_scores_255_positions(tokenizer: Tokenizer) -> None:
    windows = choose_windows(tokenizer, 4096, None, 64, 512)
    assert (len(windows.chunks), windows.length, windows.positions) == (64, 512, 255)
    assert windows.remarks == ()
    # As tokenized: the text's own start token, and then without gaps.
    assert windows.chunks[0][0] == windows.begin_id == 1
    text = tokenizer.decode([token for chunk in windows.chunks for token in chunk])
    assert text.startswith("Ruth")
    assert "\ufffd" not in text[:-3]


def test_short_text_gives_fewer_windows_and_says_so(tokenizer: Tokenizer, tmp_path: Path) -> None:
    file = tmp_path / "letter.txt"
    file.write_text("My dear Jane, come at once. " * 20, encoding="utf-8")
    windows = choose_windows(tokenizer, 4096, file, 64, 32)
    assert windows.text == str(file)
    assert 2 <= len(windows.chunks) < 64
    assert windows.remarks == (f"the text is long enough for {len(windows.chunks)} of 64 windows",)


def test_text_shorter_than_a_window_is_one_window(tokenizer: Tokenizer, tmp_path: Path) -> None:
    file = tmp_path / "note.txt"
    file.write_text("My dear Jane, come at once and bring the silver spoons.", encoding="utf-8")
    windows = choose_windows(tokenizer, 4096, file, 64, 512)
    assert len(windows.chunks) == 1
    assert windows.length < 40
    assert "one window" in windows.remarks[0]


@pytest.mark.parametrize(
    ("content", "words"), [(b"one", "tokens, expected at least 8"), (b"\xff", "UTF-8")]
)
def test_unusable_text_is_refused(
    tokenizer: Tokenizer, tmp_path: Path, content: bytes, words: str
) -> None:
    file = tmp_path / "bad.txt"
    file.write_bytes(content)
    with pytest.raises(GenerationError, match=words):
        choose_windows(tokenizer, 4096, file, 64, 512)


def test_without_a_tokenizer_tokens_are_random_and_always_the_same(tmp_path: Path) -> None:
    windows = choose_windows(None, 50, None, 3, 16)
    assert windows == choose_windows(None, 50, None, 3, 16)
    assert all(0 <= token < 50 for chunk in windows.chunks for token in chunk)
    with pytest.raises(GenerationError, match="leave --text out"):
        choose_windows(None, 50, tmp_path / "a.txt", 3, 16)


def test_prompts_are_spread_over_the_text() -> None:
    chunks = tuple(tuple(range(10 * n, 10 * n + 10)) for n in range(8))
    prompts = Windows(chunks, None, "").choose_prompts(4)
    assert [prompt[0] for prompt in prompts] == [0, 20, 40, 60]
    assert {len(prompt) for prompt in prompts} == {5}
    assert len(Windows(chunks[:1], None, "").choose_prompts(4)) == 1


def test_windows_of_a_base_file_say_what_is_otherwise_than_asked(
    tokenizer: Tokenizer, tmp_path: Path
) -> None:
    write_base_file(tmp_path / "a.kld", [range(8)] * 2, [np.zeros((3, 16), np.float32)] * 2, 16)
    base = BaseFile(tmp_path / "a.kld")
    asked = take_windows(base, tokenizer, 2, 8)
    assert asked.remarks == ()
    assert asked.begin_id is not None
    other = take_windows(base, None, 3, 64)
    assert other.begin_id is None
    assert other.remarks == (
        "windows of 8 tokens, as the base file has them: not 64",
        "the base file has 2 of 3 windows",
        "there is no tokenizer, so no start token takes the place of first tokens",
    )


@pytest.mark.parametrize("text", ["", " \n\n "])
def test_empty_text_is_called_empty(tokenizer: Tokenizer, tmp_path: Path, text: str) -> None:
    file = tmp_path / "empty.txt"
    file.write_text(text, encoding="utf-8")
    with pytest.raises(GenerationError, match=r"empty\.txt is empty: give a text"):
        choose_windows(tokenizer, 4096, file, 64, 512)


def test_folder_is_no_text(tokenizer: Tokenizer, tmp_path: Path) -> None:
    with pytest.raises(GenerationError, match="is a folder: give a text file"):
        choose_windows(tokenizer, 4096, tmp_path, 64, 512)
