"""Tokens to compare two runtimes on.

Enters: a bundle, and perhaps a text. Leaves: rows of token ids, and words that say
what they are. Everything is the same at every call.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from lfm2_deploy.bundle import Bundle
from lfm2_deploy.errors import GenerationError
from lfm2_deploy.sample_text import PRIDE_AND_PREJUDICE
from lfm2_deploy.tokenizer import Tokenizer

# Long enough that attention looks far back, short enough for the reference.
MOST_IN_A_ROW = 512
_SEED = 0


@dataclass(frozen=True, slots=True)
class Passage:
    """Rows of token ids, and what they are."""

    rows: Sequence[Sequence[int]]
    description: str


def choose_passage(bundle: Bundle, file: Path | None, tokens: int, spare: int) -> Passage:
    """Tokens of a file, of the built-in text, or, without a tokenizer, random ones.

    Args:
        bundle: its tokenizer, context length and vocabulary count.
        file: a text, or None.
        tokens: at most so many.
        spare: tokens that a row must leave free in the context.

    Raises:
        GenerationError: the file is empty or not UTF-8, or there is no tokenizer for it.
    """
    length = min(MOST_IN_A_ROW, max(1, bundle.manifest.context_length - spare))
    if not (bundle.path / "tokenizer.json").is_file():
        if file is not None:
            raise GenerationError(
                f"{bundle.path} has no tokenizer.json, so it cannot read {file}: leave --text out"
            )
        source = random.Random(_SEED)
        ids = [source.randrange(bundle.config.vocab_size) for _ in range(tokens)]
        return Passage(_cut(ids, [], length), "random tokens, as the bundle has no tokenizer")
    tokenizer = Tokenizer.from_folder(bundle.path)
    text = PRIDE_AND_PREJUDICE if file is None else _read(file)
    ids = tokenizer.encode(text, add_special_tokens=False)[:tokens]
    if not ids:
        raise GenerationError(f"{file} is empty: give a text of some hundred words")
    # Each row begins as the model's texts do, so that it is not scored on a torn start.
    start = tokenizer.encode("", add_special_tokens=True)
    name = "the opening of Pride and Prejudice" if file is None else str(file)
    return Passage(_cut(ids, start, length), name)


def _cut(ids: Sequence[int], start: Sequence[int], length: int) -> list[list[int]]:
    step = max(1, length - len(start))
    return [[*start, *ids[at : at + step]][:length] for at in range(0, len(ids), step)]


def _read(file: Path) -> str:
    try:
        return file.read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise GenerationError(f"{file} is not UTF-8 text: convert it first") from error
