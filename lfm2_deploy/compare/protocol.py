"""What subjects are compared on: windows of tokens, and prompts to continue.

Enters: a tokenizer, or a vocabulary's size, and perhaps a text. Leaves: windows, all of one
length, each read from an empty state; the second half of each is scored. That is llama.cpp's
protocol (`llama-perplexity --kl-divergence`): 64 chunks of 512 tokens, the text cut without
gaps, the first token of each replaced by the start token. Everything is the same at every call.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from lfm2_deploy.compare.base_file import BaseFile, first_scored
from lfm2_deploy.compare.defaults import LENGTH
from lfm2_deploy.errors import GenerationError
from lfm2_deploy.tokenizer import Tokenizer

# Below this, half a window says little of how a model reads.
LEAST_LENGTH = 8
# US State of the Union addresses of 2010 and 2011, and a public-domain translation of Ruth, Jonah
# and Mark, in turns: 176 kB, enough for 64 windows. The demo model was not trained on it.
_HELD_OUT = Path(__file__).with_name("held_out.txt")
_HELD_OUT_NAME = "speeches and scripture (public domain, comes with this package)"
_SEED = 0
_MOST_PROMPT = 32


@dataclass(frozen=True, slots=True)
class Windows:
    """Tokens to compare on.

    Args:
        chunks: as tokenized, all of one length.
        begin_id: what takes the place of each chunk's first token; None to keep it.
        text: what they are, for people.
        remarks: what is otherwise than was asked.
    """

    chunks: tuple[tuple[int, ...], ...]
    begin_id: int | None
    text: str
    remarks: tuple[str, ...] = ()

    @property
    def length(self) -> int:
        """Tokens of a window."""
        return len(self.chunks[0])

    @property
    def first(self) -> int:
        """The first position that is scored; the last is `length - 2`."""
        return first_scored(self.length)

    @property
    def positions(self) -> int:
        """Scored positions of a window."""
        return self.length - 1 - self.first

    def read_by(self, window: int) -> list[int]:
        """What a model reads of a window: all but the last token, which is only predicted."""
        row = list(self.chunks[window][:-1])
        if self.begin_id is not None:
            row[0] = self.begin_id
        return row

    def targets(self, window: int) -> list[int]:
        """The true next tokens of the scored positions."""
        return list(self.chunks[window][self.first + 1 :])

    @property
    def prompt_length(self) -> int:
        """Tokens of each prompt."""
        return min(_MOST_PROMPT, self.length // 2)

    def choose_prompts(self, count: int) -> list[list[int]]:
        """Beginnings of windows, spread over the text."""
        count = min(count, len(self.chunks))
        places = [number * len(self.chunks) // count for number in range(count)]
        return [self.read_by(place)[: self.prompt_length] for place in places]


def choose_windows(
    tokenizer: Tokenizer | None, vocab_size: int, file: Path | None, chunks: int, length: int
) -> Windows:
    """Cut a text into windows.

    Args:
        tokenizer: of the model; random tokens are taken where it has none.
        vocab_size: ids are below it.
        file: a text of the user's, or None for the one that comes with this package.
        chunks: how many windows; fewer where the text is shorter.
        length: tokens in each; fewer where the text has not that many.

    Raises:
        GenerationError: the text is empty or not UTF-8, or there is no tokenizer for it.
    """
    if tokenizer is None:
        if file is not None:
            raise GenerationError(
                f"there is no tokenizer.json, so {file} cannot be read: leave --text out"
            )
        source = random.Random(_SEED)
        rows = [tuple(source.randrange(vocab_size) for _ in range(length)) for _ in range(chunks)]
        return Windows(tuple(rows), None, "random tokens, as there is no tokenizer")
    name = _HELD_OUT_NAME if file is None else str(file)
    text = _read(_HELD_OUT if file is None else file)
    if not text.strip():
        raise GenerationError(f"{name} is empty: give a text of some thousand words")
    start = tokenizer.encode("", add_special_tokens=True)
    ids = [*start, *tokenizer.encode(text, add_special_tokens=False)]
    return _cut(ids, start[0] if start else None, name, chunks, length)


def _cut(ids: Sequence[int], begin_id: int | None, name: str, chunks: int, length: int) -> Windows:
    remarks = []
    if len(ids) < length:
        if len(ids) < LEAST_LENGTH:
            raise GenerationError(
                f"{name} has {len(ids)} token{'s' * (len(ids) != 1)}, expected at least "
                f"{LEAST_LENGTH}: give a text of some thousand words"
            )
        remarks.append(
            f"the text has {len(ids):,} tokens: one window instead of {length:,}-token windows"
        )
        length = len(ids)
    count = min(chunks, len(ids) // length)
    if count < chunks and not remarks:
        remarks.append(f"the text is long enough for {count} of {chunks} windows")
    rows = tuple(tuple(ids[at * length : (at + 1) * length]) for at in range(count))
    return Windows(rows, begin_id, name, tuple(remarks))


def take_windows(
    base: BaseFile, tokenizer: Tokenizer | None, chunks: int, length: int = LENGTH
) -> Windows:
    """The windows that a base file was made of, or the first of them.

    Args:
        base: its tokens are taken as they are.
        tokenizer: its start token takes the place of each window's first, as llama.cpp does it.
        chunks: most windows to take.
        length: tokens that were asked for; the base file has its own.
    """
    remarks = []
    if length not in (LENGTH, base.length):
        remarks.append(f"windows of {base.length} tokens, as the base file has them: not {length}")
    if base.chunks < chunks:
        remarks.append(f"the base file has {base.chunks} of {chunks} windows")
    if tokenizer is None:
        remarks.append("there is no tokenizer, so no start token takes the place of first tokens")
    start = [] if tokenizer is None else tokenizer.encode("", add_special_tokens=True)
    rows = tuple(tuple(row) for row in base.tokens[:chunks].tolist())
    text = f"the tokens of {base.path.name}"
    return Windows(rows, start[0] if start else None, text, tuple(remarks))


def _read(file: Path) -> str:
    file = file.expanduser()
    if file.is_dir():
        raise GenerationError(f"{file} is a folder: give a text file in it")
    try:
        return file.read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise GenerationError(f"{file} is not UTF-8 text: convert it first") from error
