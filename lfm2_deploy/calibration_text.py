"""Tokens to calibrate with: for the ranges of activations, and for the rounding of weights.

Enters: a checkpoint, and perhaps a text. Leaves: rows of token ids, all of one length. Everything
is the same at every call.
"""

from __future__ import annotations

import hashlib
import random
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from lfm2_deploy.config import Lfm2Config
from lfm2_deploy.contracts import Checkpoint
from lfm2_deploy.errors import ExportError
from lfm2_deploy.quantization_record import FEW_TOKENS
from lfm2_deploy.sample_text import PRIDE_AND_PREJUDICE
from lfm2_deploy.tokenizer import Tokenizer

# Long enough that attention looks far back.
ROW = 256
# Ranges settle early; memory grows with the tokens (docs/qnn.md).
MOST_ROWS = 8
# Rows to round weights on: two models' hidden states of all of them, and what experts add to
# both, are in memory at once: half a gibibyte at most.
MOST_WEIGHT_ROWS = 128
_MOST_NUMBERS = 1 << 25
# Of a longer file, passages spread over it are read.
_MOST_CHARACTERS = 1 << 21
BUILT_IN = Path(__file__).with_name("calibration.txt")
_SEED = 0
_RANDOM = "random tokens"


@dataclass(frozen=True, slots=True)
class CalibrationText:
    """What weights are rounded on.

    Args:
        name: the file's, or what else it is.
        sha256: of the text in UTF-8, its line ends as "\\n"; "" where there is none.
        rows: token ids, all of one length.
    """

    name: str
    sha256: str
    rows: list[list[int]]

    @property
    def remark(self) -> str:
        """What a user should know of it; "" for nothing."""
        tokens = sum(map(len, self.rows))
        told = round(tokens * measure_novelty(self.rows))
        if self.name == _RANDOM or told >= FEW_TOKENS:
            return ""
        kinds = "" if told == tokens else f", {told:,} of which say something new"
        return (
            f"weights were calibrated on {tokens:,} tokens{kinds}: little better than without a "
            f"text; {FEW_TOKENS:,} or more are worth the time"
        )


def choose_calibration(checkpoint: Checkpoint, file: Path | None) -> list[list[int]]:
    """Rows to find ranges on, of a file, of a page of Austen, or, without a tokenizer, random.

    Args:
        checkpoint: its tokenizer and vocabulary count.
        file: a text, or None. Of a long one only the beginning is read.

    Raises:
        ExportError: the file is too short or not UTF-8, or there is no tokenizer for it.
    """
    tokenizer = _find_tokenizer(checkpoint, file)
    if tokenizer is None:
        return _draw_rows(checkpoint.config, 2)
    text = PRIDE_AND_PREJUDICE if file is None else _read(file)
    room = _count_room(checkpoint.config, tokenizer)
    ids = _encode(tokenizer, text, file)
    count = min(MOST_ROWS, -(-len(ids) // room))
    return _cut(tokenizer, ids[: count * room], count, room)


def count_rows(config: Lfm2Config) -> int:
    """How many rows to round weights on at most, by a model's width."""
    return max(1, min(MOST_WEIGHT_ROWS, _MOST_NUMBERS // (ROW * config.hidden_size)))


def choose_text(checkpoint: Checkpoint, file: Path | None) -> CalibrationText:
    """Rows to round weights on, spread over a file or over the built-in text.

    Args:
        checkpoint: its tokenizer, vocabulary and width count.
        file: a text, or None for the built-in one.

    Raises:
        ExportError: the file is too short or not UTF-8, or there is no tokenizer for it.
    """
    config = checkpoint.config
    most = count_rows(config)
    tokenizer = _find_tokenizer(checkpoint, file)
    if tokenizer is None:
        return CalibrationText(_RANDOM, "", _draw_rows(config, min(most, MOST_ROWS)))
    place = BUILT_IN if file is None else file
    text = _read(place)
    room = _count_room(config, tokenizer)
    ids = _encode(tokenizer, _thin_out(text), place)
    count = min(most, -(-len(ids) // room))
    name = "the built-in text" if file is None else file.name
    digest = hashlib.sha256(text.encode()).hexdigest()
    return CalibrationText(name, digest, _cut(tokenizer, ids, count, room))


def measure_novelty(rows: Sequence[Sequence[int]]) -> float:
    """Share of tokens that follow two others as they did nowhere before, 0 to 1.

    A text that says the same thing over and over has many tokens and tells little.
    """
    every = [tuple(row[at : at + 3]) for row in rows for at in range(max(1, len(row) - 2))]
    return len(set(every)) / len(every)


def _find_tokenizer(checkpoint: Checkpoint, file: Path | None) -> Tokenizer | None:
    place = checkpoint.side_files.get("tokenizer.json")
    if place is not None:
        return Tokenizer.from_folder(place.parent)
    if file is not None:
        raise ExportError(
            f"the checkpoint has no tokenizer.json, so it cannot read {file}: leave --calibrate out"
        )
    return None


def _draw_rows(config: Lfm2Config, count: int) -> list[list[int]]:
    source = random.Random(_SEED)
    length = min(ROW, config.max_position_embeddings)
    return [[source.randrange(config.vocab_size) for _ in range(length)] for _ in range(count)]


def _count_room(config: Lfm2Config, tokenizer: Tokenizer) -> int:
    start = tokenizer.encode("", add_special_tokens=True)
    return max(1, min(ROW, config.max_position_embeddings) - len(start))


def _encode(tokenizer: Tokenizer, text: str, file: Path | None) -> list[int]:
    ids = tokenizer.encode(text, add_special_tokens=False) if text.strip() else []
    if not ids:
        raise ExportError(f"{file} is empty: give a text of some thousand words to calibrate on")
    return ids


def _cut(tokenizer: Tokenizer, ids: list[int], count: int, room: int) -> list[list[int]]:
    """`count` rows, spread evenly."""
    # Each row begins as the model's texts do: the first token has activations of its own.
    start = tokenizer.encode("", add_special_tokens=True)
    stride = len(ids) // count
    length = min(room, stride)
    return [[*start, *ids[row * stride : row * stride + length]] for row in range(count)]


def _thin_out(text: str) -> str:
    """A text of bounded length: all of it, or passages spread over it."""
    if len(text) <= _MOST_CHARACTERS:
        return text
    passage = _MOST_CHARACTERS // MOST_WEIGHT_ROWS
    stride = len(text) // MOST_WEIGHT_ROWS
    starts = range(0, MOST_WEIGHT_ROWS * stride, stride)
    return "".join(text[start : start + passage] for start in starts)


def _read(file: Path) -> str:
    try:
        return file.expanduser().read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise ExportError(f"{file} is not UTF-8 text: convert it first") from error
    except OSError as error:
        raise ExportError(
            f"{file} cannot be read ({error.strerror}): name a text to calibrate on"
        ) from error
