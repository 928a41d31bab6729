"""Tokens to find the ranges of activations with.

Enters: a checkpoint, and perhaps a text. Leaves: rows of token ids, all of one length. Everything
is the same at every call.
"""

from __future__ import annotations

import random
from pathlib import Path

from lfm2_deploy.contracts import Checkpoint
from lfm2_deploy.errors import ExportError
from lfm2_deploy.sample_text import PRIDE_AND_PREJUDICE
from lfm2_deploy.tokenizer import Tokenizer

# Long enough that attention looks far back.
ROW = 256
# Ranges settle early; memory grows with the tokens (docs/qnn.md).
MOST_ROWS = 8
_SEED = 0


def choose_calibration(checkpoint: Checkpoint, file: Path | None) -> list[list[int]]:
    """Rows of a file, of the built-in text, or, without a tokenizer, of random tokens.

    Args:
        checkpoint: its tokenizer and vocabulary count.
        file: a text, or None. Of a long one only the beginning is read.

    Raises:
        ExportError: the file is too short or not UTF-8, or there is no tokenizer for it.
    """
    longest = min(ROW, checkpoint.config.max_position_embeddings)
    tokenizer_file = checkpoint.side_files.get("tokenizer.json")
    if tokenizer_file is None:
        if file is not None:
            raise ExportError(
                f"the checkpoint has no tokenizer.json, so it cannot read {file}: leave "
                "--calibrate out"
            )
        source = random.Random(_SEED)
        size = checkpoint.config.vocab_size
        return [[source.randrange(size) for _ in range(longest)] for _ in range(2)]
    tokenizer = Tokenizer.from_folder(tokenizer_file.parent)
    text = PRIDE_AND_PREJUDICE if file is None else _read(file)
    ids = tokenizer.encode(text, add_special_tokens=False)
    # Each row begins as the model's texts do: the first token has activations of its own.
    start = tokenizer.encode("", add_special_tokens=True)
    if not ids:
        raise ExportError(f"{file} is empty: give a text of some hundred words to calibrate on")
    room = max(1, longest - len(start))
    count = min(MOST_ROWS, -(-len(ids) // room))
    step = min(room, len(ids) // count)
    return [[*start, *ids[at : at + step]] for at in range(0, count * step, step)]


def _read(file: Path) -> str:
    try:
        return file.expanduser().read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise ExportError(f"{file} is not UTF-8 text: convert it first") from error
    except OSError as error:
        raise ExportError(
            f"{file} cannot be read ({error.strerror}): name a text to calibrate on"
        ) from error
