"""llama.cpp's base files, against bytes laid out by hand."""

from __future__ import annotations

import math
import struct
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from lfm2_deploy.compare.base_file import BaseFile, measure_base_file, write_base_file
from lfm2_deploy.errors import GenerationError

# Chunks of 6 tokens: positions 3 and 4 are scored (n_ctx / 2 to n_ctx - 2).
TOKENS = [[1, 2, 0, 1, 2, 0], [2, 2, 1, 1, 0, 0]]


def lay_out(vocab_size: int, records: list[tuple[float, float, list[int]]]) -> bytes:
    """A base file of `TOKENS`, written as perplexity.cpp writes it."""
    data = b"_logits_" + struct.pack("<3i", 6, vocab_size, 2)
    data += struct.pack("<12i", *TOKENS[0], *TOKENS[1])
    for scale, lowest, steps in records:
        data += struct.pack("<2f", scale, lowest)
        data += struct.pack(f"<{len(steps)}H", *steps)
    return data


def write(path: Path, data: bytes) -> Path:
    path.write_bytes(data)
    return path


def test_hand_made_bytes_are_read(tmp_path: Path) -> None:
    # An odd vocabulary is padded to an even one.
    records = [(0.5, -4.0, [0, 2, 7, 99])] * 3 + [(0.25, -2.0, [8, 0, 4, 99])]
    base = BaseFile(write(tmp_path / "a.kld", lay_out(3, records)))
    assert (base.length, base.vocab_size, base.chunks, base.positions) == (6, 3, 2, 2)
    assert base.tokens.tolist() == TOKENS
    # -4 + 0.5 q and -2 + 0.25 q are exact in float32.
    assert base.read(0).tolist() == [[-4.0, -3.0, -0.5]] * 2
    assert base.read(1).tolist() == [[-4.0, -3.0, -0.5], [0.0, -2.0, -1.0]]


def test_written_bytes_are_llama_cpps(tmp_path: Path) -> None:
    # Logits 2, 0, -2 and far below: the lowest is cut to the highest less 16.
    logits = np.array([[2.0, 0.0, -2.0, -40.0]] * 2, np.float32)
    file = tmp_path / "b.kld"
    write_base_file(file, TOKENS, [logits, logits], 4)
    scale = np.float32(np.float32(16) / np.float32(65535))
    total = sum(math.exp(x) for x in (0, -2, -4, -42))
    lowest = np.float32(np.float32(-16) - np.float32(math.log(total)))
    inverse = np.float32(1) / scale
    steps = [int(np.rint(inverse * np.float32(x + 14))) for x in (2.0, 0.0, -2.0)]
    assert steps[0] == 65535
    assert file.read_bytes() == lay_out(4, [(scale, lowest, [*steps, 0])] * 4)
    assert file.stat().st_size == measure_base_file(2, 6, 4)
    assert list(tmp_path.iterdir()) == [file]


def test_equal_logits_are_written_with_a_scale_of_zero(tmp_path: Path) -> None:
    file = tmp_path / "c.kld"
    write_base_file(file, TOKENS, [np.zeros((2, 4), np.float32)] * 2, 4)
    # Every log-probability is -log 4, to float32's rounding.
    np.testing.assert_allclose(BaseFile(file).read(1), np.full((2, 4), -math.log(4)), rtol=1e-6)


def test_what_is_read_is_what_was_written_to_half_a_step(tmp_path: Path) -> None:
    logits = np.random.default_rng(0).standard_normal((2, 2, 101)).astype(np.float32) * 3
    file = tmp_path / "d.kld"
    write_base_file(file, TOKENS, list(logits), 101)
    wanted = logits - np.log(np.exp(logits).sum(-1, keepdims=True))
    got = np.stack([BaseFile(file).read(chunk) for chunk in range(2)])
    # Logits span at most 16 nats in 65,535 steps: half of one, and float32's rounding.
    assert (
        np.abs(got - wanted)[wanted > wanted.max(-1, keepdims=True) - 16].max()
        < 0.5 * 2.5e-4 + 5e-6
    )


def test_resolution_is_that_of_the_mean(tmp_path: Path) -> None:
    base = BaseFile(write(tmp_path / "e.kld", lay_out(4, [(0.24, -4.0, [0, 0, 0, 0])] * 4)))
    # 0.24 / sqrt(12) at each of 4 positions.
    assert base.measure_resolution() == pytest.approx(0.24 / math.sqrt(12) / 2, rel=1e-6)


@pytest.mark.parametrize(
    ("spoil", "words"),
    [
        (lambda data: b"_logit_s" + data[8:], "is not a base file"),
        (lambda data: data[:10], "is not a base file"),
        (lambda data: data[:-1], "cut short"),
        (lambda data: data[:8] + struct.pack("<3i", 6, -3, 2) + data[20:], "damaged"),
        (lambda data: data[:20] + struct.pack("<i", 4) + data[24:], "token 4 is not in 0 to 3"),
    ],
)
def test_damaged_file_is_refused(
    tmp_path: Path, spoil: Callable[[bytes], bytes], words: str
) -> None:
    data = spoil(lay_out(4, [(0.5, -4.0, [0, 2, 7, 9])] * 4))
    with pytest.raises(GenerationError, match=words):
        BaseFile(write(tmp_path / "f.kld", data))


def test_base_file_that_cannot_be_written_is_named_and_leaves_nothing(tmp_path: Path) -> None:
    place = tmp_path / "taken"
    place.mkdir()
    with pytest.raises(OSError, match="taken") as caught:
        write_base_file(place, [[1, 2, 3, 4]], [np.zeros((1, 8), np.float32)], 8)
    assert caught.value.filename == str(place)
    assert list(tmp_path.iterdir()) == [place]
