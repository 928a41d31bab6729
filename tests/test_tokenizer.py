"""Text becomes ids and comes back byte for byte, at once or as it arrives."""

from __future__ import annotations

import json
import shutil
import threading
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tokenizers
from tokenizers.models import WordLevel

from lfm2_deploy.demo import DEMO_MODEL
from lfm2_deploy.errors import BundleError, GenerationError
from lfm2_deploy.tokenizer import TextStream, Tokenizer

TEXTS = [
    "",
    "It is a truth universally acknowledged.",
    "  leading, double  and trailing spaces  ",
    "tabs\tand\r\nlines\n\n\n",
    "naïve café, Ærøskøbing, Łódź",
    "e\u0301 a\u0308 and n\u0303 in combining marks",
    "漢字かな交じり文、한국어",
    "🙂👩‍👩‍👧‍👦🏳️‍🌈 flags 🇫🇷",
    "مرحبا עולם नमस्ते",
    "\x00\x01\x7f\u0080\u00ad\ufeff\uffff",
    "x = {'a': [1, 2.5e-3]}  # code",
]
BOS, IM_START, IM_END = 1, 6, 7


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    return Tokenizer.from_folder(DEMO_MODEL)


def stream_all(tokenizer: Tokenizer, ids: list[int], *, skip: bool = True) -> list[str]:
    """Every piece a stream gives out, the flushed one last."""
    stream = TextStream(tokenizer, skip_special_tokens=skip)
    return [*(stream.push(token_id) for token_id in ids), stream.flush()]


def byte_ids(tokenizer: Tokenizer, data: bytes) -> list[int]:
    """One token for each byte."""
    single = {tokenizer.token_bytes(i): i for i in reversed(range(tokenizer.vocab_size))}
    return [single[bytes([byte])] for byte in data]


@pytest.mark.parametrize("text", TEXTS)
def test_encoded_text_decodes_to_itself(tokenizer: Tokenizer, text: str) -> None:
    ids = tokenizer.encode(text, add_special_tokens=False)
    assert tokenizer.decode(ids) == text


@pytest.mark.parametrize("text", TEXTS)
def test_ids_and_text_agree_with_the_tokenizers_library(tokenizer: Tokenizer, text: str) -> None:
    backend = tokenizers.Tokenizer.from_file(str(DEMO_MODEL / "tokenizer.json"))
    for special in (False, True):
        ids = tokenizer.encode(text, add_special_tokens=special)
        assert ids == backend.encode(text, add_special_tokens=special).ids
        assert tokenizer.decode(ids) == backend.decode(ids)


def test_start_token_comes_only_when_asked_for(tokenizer: Tokenizer) -> None:
    bare = tokenizer.encode("Hello", add_special_tokens=False)
    assert tokenizer.encode("Hello", add_special_tokens=True) == [BOS, *bare]
    assert BOS not in bare


def test_special_tokens_in_the_text_become_their_ids(tokenizer: Tokenizer) -> None:
    ids = tokenizer.encode("<|im_start|>user<|im_end|>", add_special_tokens=False)
    assert (ids[0], ids[-1]) == (IM_START, IM_END)


def test_special_tokens_are_hidden_unless_asked_for(tokenizer: Tokenizer) -> None:
    text = "<|im_start|>user\nHi<|im_end|>"
    ids = tokenizer.encode(text, add_special_tokens=True)
    assert tokenizer.decode(ids) == "user\nHi"
    assert tokenizer.decode(ids, skip_special_tokens=False) == "<|startoftext|>" + text


def test_special_tokens_are_known_by_role_text_and_id(tokenizer: Tokenizer) -> None:
    assert tokenizer.special_tokens == {
        "bos_token": "<|startoftext|>",
        "eos_token": "<|im_end|>",
        "pad_token": "<|pad|>",
    }
    assert tokenizer.token_id("<|im_end|>") == IM_END
    assert tokenizer.token_id("<|no such token|>") is None
    assert {0, BOS, IM_START, IM_END} <= tokenizer.special_ids
    assert not tokenizer.special_ids & {*tokenizer.encode("Hello", add_special_tokens=False)}


@pytest.mark.parametrize("stray", [-1, 4096, 65535, 2**31, 2**40])
def test_id_beyond_the_vocabulary_decodes_to_nothing(tokenizer: Tokenizer, stray: int) -> None:
    ids = tokenizer.encode("before after", add_special_tokens=False)
    assert tokenizer.token_bytes(stray) == b""
    assert tokenizer.token_text(stray) == ""
    assert tokenizer.decode([stray, *ids, stray]) == "before after"
    assert "".join(stream_all(tokenizer, [stray, *ids, stray])) == "before after"


def test_half_a_surrogate_pair_is_refused(tokenizer: Tokenizer) -> None:
    with pytest.raises(GenerationError, match=r"character 3 .*U\+D83D"):
        tokenizer.encode("abc\ud83d", add_special_tokens=True)


def test_truncation_and_padding_of_the_file_are_ignored(tmp_path: Path) -> None:
    backend = tokenizers.Tokenizer.from_file(str(DEMO_MODEL / "tokenizer.json"))
    backend.enable_truncation(4)
    backend.enable_padding(length=64)
    backend.save(str(tmp_path / "tokenizer.json"))
    tokenizer = Tokenizer.from_folder(tmp_path)
    text = "many more words than four tokens could hold"
    assert tokenizer.decode(tokenizer.encode(text, add_special_tokens=False)) == text


def test_missing_tokenizer_is_named(tmp_path: Path) -> None:
    with pytest.raises(BundleError, match=r"no tokenizer\.json") as caught:
        Tokenizer.from_folder(tmp_path)
    assert str(tmp_path) in str(caught.value)


@pytest.mark.parametrize("content", [b"", b"{", b"[]", b"{}", b"\xff\xfe", b"version https://git"])
def test_corrupt_tokenizer_is_named(tmp_path: Path, content: bytes) -> None:
    file = tmp_path / "tokenizer.json"
    file.write_bytes(content)
    with pytest.raises(BundleError, match="cannot be read") as caught:
        Tokenizer.from_folder(tmp_path)
    assert str(file) in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("content", [b"{", b"[1]", b"\xff", b"[" * 200_000])
def test_corrupt_tokenizer_config_is_named(tmp_path: Path, content: bytes) -> None:
    shutil.copy(DEMO_MODEL / "tokenizer.json", tmp_path)
    file = tmp_path / "tokenizer_config.json"
    file.write_bytes(content)
    with pytest.raises(BundleError) as caught:
        Tokenizer.from_folder(tmp_path)
    assert str(file) in str(caught.value)


def test_tokenizer_that_is_not_byte_level_is_refused(tmp_path: Path) -> None:
    words = tokenizers.Tokenizer(WordLevel({"[UNK]": 0, "a": 1}, unk_token="[UNK]"))
    words.save(str(tmp_path / "tokenizer.json"))
    with pytest.raises(BundleError, match="not a byte-level tokenizer"):
        Tokenizer.from_folder(tmp_path)


def test_start_token_without_a_config_comes_from_the_post_processor(tmp_path: Path) -> None:
    shutil.copy(DEMO_MODEL / "tokenizer.json", tmp_path)
    assert Tokenizer.from_folder(tmp_path).special_tokens == {"bos_token": "<|startoftext|>"}


def test_special_tokens_may_be_objects_or_null(tmp_path: Path) -> None:
    shutil.copy(DEMO_MODEL / "tokenizer.json", tmp_path)
    listed = {"bos_token": {"content": "<|endoftext|>", "lstrip": False}, "unk_token": None}
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(listed))
    assert Tokenizer.from_folder(tmp_path).special_tokens == {"bos_token": "<|endoftext|>"}


@pytest.mark.parametrize("text", TEXTS)
def test_streamed_text_equals_the_whole_and_cuts_no_character(
    tokenizer: Tokenizer, text: str
) -> None:
    pieces = stream_all(tokenizer, byte_ids(tokenizer, text.encode()))
    assert "".join(pieces) == text
    assert "\ufffd" not in "".join(pieces)
    # Every byte is a token of its own: a character comes out whole with its last byte.
    ends = np.cumsum([len(character.encode()) for character in text])
    expected = dict(zip(ends.tolist(), text, strict=True))
    assert pieces == [*(expected.get(n + 1, "") for n in range(len(text.encode()))), ""]


def test_stream_of_random_ids_equals_the_whole(tokenizer: Tokenizer) -> None:
    random = np.random.default_rng(0)
    for skip in (True, False):
        for _ in range(50):
            # Ids up to 4200: some are beyond the vocabulary of 4096.
            ids = random.integers(0, 4200, size=60).tolist()
            whole = tokenizer.decode(ids, skip_special_tokens=skip)
            assert "".join(stream_all(tokenizer, ids, skip=skip)) == whole


def test_stream_of_random_bytes_equals_the_whole(tokenizer: Tokenizer) -> None:
    random = np.random.default_rng(1)
    for _ in range(50):
        data = random.integers(0, 256, size=60, dtype=np.uint8).tobytes()
        expected = data.decode("utf-8", "replace")
        ids = byte_ids(tokenizer, data)
        assert tokenizer.decode(ids) == expected
        assert "".join(stream_all(tokenizer, ids)) == expected


def test_special_token_inside_a_character_does_not_break_it(tokenizer: Tokenizer) -> None:
    first, *others = byte_ids(tokenizer, "漢".encode())
    assert stream_all(tokenizer, [first, IM_END, *others]) == ["", "", "", "漢", ""]


def test_special_token_that_is_kept_stays_in_the_text(tokenizer: Tokenizer) -> None:
    text = "<|tool_call_start|>[f()]<|tool_call_end|>"
    ids = tokenizer.encode(text + "<|im_end|>", add_special_tokens=False)
    kept = frozenset({ids[0]})
    stream = TextStream(tokenizer, kept=kept)
    assert "".join(stream.push(token_id) for token_id in ids) == "<|tool_call_start|>[f()]"


@pytest.mark.parametrize("length", [1, 2, 3])
def test_unfinished_character_is_flushed_as_one_replacement(
    tokenizer: Tokenizer, length: int
) -> None:
    ids = byte_ids(tokenizer, b"a" + "🙂".encode()[:length])
    assert stream_all(tokenizer, ids) == ["a", *[""] * length, "\ufffd"]
    assert tokenizer.decode(ids) == "a\ufffd"


def test_stream_handles_each_token_once(
    tokenizer: Tokenizer, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[int] = []
    token_bytes = Tokenizer.token_bytes

    def count(self: Tokenizer, token_id: int) -> bytes:
        asked.append(token_id)
        return token_bytes(self, token_id)

    def refuse(*_: Any, **__: Any) -> str:
        raise AssertionError("the stream decoded its history again")

    ids = tokenizer.encode("naïve 漢字 🙂 words " * 50, add_special_tokens=False)
    monkeypatch.setattr(Tokenizer, "token_bytes", count)
    monkeypatch.setattr(Tokenizer, "decode", refuse)
    stream_all(tokenizer, ids)
    assert asked == ids


@pytest.mark.parametrize(
    ("text", "most", "exceeds"),
    [
        ("a" * 200_000, 1_000, True),
        ("a" * 200_000, 200_000, False),
        ("a" * 60_000, 10, False),  # short enough to be encoded
        ("It is a truth universally acknowledged. " * 5_000, 1_000, True),
        ("It is a truth universally acknowledged. " * 5_000, 50_000, False),
    ],
)
def test_text_exceeds_where_its_beginning_does(
    tokenizer: Tokenizer, text: str, most: int, exceeds: bool
) -> None:
    assert tokenizer.exceeds(text, most) is exceeds
    if exceeds:
        assert len(tokenizer.encode(text, add_special_tokens=False)) > most


def test_long_text_becomes_the_ids_of_a_short_one(tokenizer: Tokenizer) -> None:
    text = "".join(TEXTS) * 100 + "<|im_end|>"
    backend = tokenizers.Tokenizer.from_str(tokenizer.to_json())
    for special in (False, True):
        expected = backend.encode(text, add_special_tokens=special).ids
        assert tokenizer.encode(text, add_special_tokens=special) == expected


def test_long_text_leaves_other_threads_running(tokenizer: Tokenizer) -> None:
    text = "hello world " * 100_000
    given = {"add_special_tokens": False}
    encoding = threading.Thread(target=tokenizer.encode, args=(text,), kwargs=given)
    encoding.start()
    ticks = 0
    while encoding.is_alive():
        ticks += 1
        time.sleep(0.001)
    # It takes 0.2 s; where others stood still meanwhile, the count was 1 or 2.
    assert ticks > 5
