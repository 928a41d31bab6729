"""Which tokens a canary appends, and in which calls.

Enters: a checkpoint's tokenizer, and the shape of the target's calls. Leaves: rows of calls. Every
way in which states are read and written has its call: a prompt, single tokens after it, several
tokens on top of what is there, a prompt of one token, and one that is longer than a chunk.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate

from lfm2_deploy.contracts import Checkpoint
from lfm2_deploy.sample_text import PRIDE_AND_PREJUDICE
from lfm2_deploy.tokenizer import Tokenizer

# Past the end of a chunk, and not a whole one: where openvino#38100's conv states went wrong.
_PAST_CHUNK = 7
# Longer chunks are not recorded across their end: that many tokens would cost too much.
_LONGEST_CHUNK = 512
# More than 32: flash attention on WebGPU is another kernel from there on.
_LONG_PROMPT = 40
_TOKENS = _LONGEST_CHUNK + 128
_SEED = 0
# Calls of each row, by their tokens; 0 stands for the long prompt.
# Logits are compared after each token of "steps": there an expert shows most.
STEPS = "steps"
_CUTS = {
    "text": (12, 1, 1, 5, 1, 1),
    STEPS: (2, *[1] * 14),
    "single": (1, 1, 3, 1, 1),
    "long": (0, 1, 1, 1),
}


@dataclass(frozen=True, slots=True)
class ScriptRow:
    """Tokens of each call of one row."""

    name: str
    calls: tuple[tuple[int, ...], ...]

    @property
    def tokens(self) -> tuple[int, ...]:
        """Of all calls."""
        return tuple(token for call in self.calls for token in call)

    @property
    def ends(self) -> tuple[int, ...]:
        """After how many tokens each call ends."""
        return tuple(accumulate(map(len, self.calls)))


def choose_tokens(checkpoint: Checkpoint) -> tuple[int, ...]:
    """Ids to cut rows from: a page of Austen, or, without a tokenizer, random ones.

    The first is what texts begin with.
    """
    file = checkpoint.side_files.get("tokenizer.json")
    size = checkpoint.config.vocab_size
    if file is not None:
        tokenizer = Tokenizer.from_folder(file.parent)
        start = tokenizer.encode("", add_special_tokens=True) or [1 % size]
        ids = [*start[:1], *tokenizer.encode(PRIDE_AND_PREJUDICE, add_special_tokens=False)]
        # A tokenizer that knows more than the model would be another model's.
        if all(token < size for token in ids):
            return tuple(ids[:_TOKENS])
    source = random.Random(_SEED)
    return tuple(source.randrange(size) for _ in range(_TOKENS))


def write_script(ids: Sequence[int], chunk: int, context_length: int) -> tuple[ScriptRow, ...]:
    """Cut ids into rows.

    Args:
        ids: from `choose_tokens`.
        chunk: tokens that one call of a prompt takes, where shapes are fixed; else 0.
        context_length: no row is longer.
    """
    prompt = chunk + _PAST_CHUNK if 0 < chunk <= _LONGEST_CHUNK else _LONG_PROMPT
    rows, at = [], 1
    for name, cuts in _CUTS.items():
        sizes = _fit([size or prompt for size in cuts], context_length)
        stream = _take(ids, at, sum(sizes))
        ends = list(accumulate(sizes))
        calls = [stream[e - size : e] for e, size in zip(ends, sizes, strict=True)]
        rows.append(ScriptRow(name, tuple(calls)))
        at += sum(sizes)
    return tuple(rows)


def _fit(sizes: Sequence[int], most: int) -> list[int]:
    """Sizes whose sum is at most so much: the first is shortened, and the last ones left out."""
    later = list(sizes[1:])
    while later and sum(later) >= most:
        later.pop()
    return [min(sizes[0], most - sum(later)), *later]


def _take(ids: Sequence[int], at: int, count: int) -> tuple[int, ...]:
    """A row of its own: what texts begin with, and then so many ids from a place on, in a ring."""
    rest = [ids[1 + (at + n - 1) % (len(ids) - 1)] for n in range(count - 1)]
    return (ids[0], *rest)
