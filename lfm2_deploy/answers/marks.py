"""Finds marks, such as <|tool_call_start|>, in a text that arrives in pieces.

Enters: pieces of text. Leaves: the text between marks, and the marks. Knows not what they mean.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

CALL_START, CALL_END = "<|tool_call_start|>", "<|tool_call_end|>"
THINK_START, THINK_END = "<think>", "</think>"


class MarkScanner:
    """Cuts a text at its marks, however the text is cut already.

    A tail that may be the beginning of a mark is held back until more text decides.
    """

    def __init__(self, marks: Sequence[str]) -> None:
        """Begin a text.

        Args:
            marks: non-empty strings, none of which contains another.
        """
        self._pattern = re.compile("|".join(map(re.escape, marks)))
        self._beginnings = {mark[:length] for mark in marks for length in range(1, len(mark))}
        self._longest = max(map(len, marks)) - 1
        self._held = ""

    def push(self, text: str) -> list[tuple[str, str | None]]:
        """Take more text in.

        Args:
            text: the next piece.

        Returns:
            Texts, each with the mark that ends it; None where the text goes on.
        """
        text = self._held + text
        pieces: list[tuple[str, str | None]] = []
        start = 0
        for found in self._pattern.finditer(text):
            pieces.append((text[start : found.start()], found[0]))
            start = found.end()
        kept = len(text) - self._open_length(text, start)
        self._held = text[kept:]
        return [*pieces, (text[start:kept], None)]

    def flush(self) -> str:
        """The text still held back, which turned out to be no mark."""
        text, self._held = self._held, ""
        return text

    def _open_length(self, text: str, start: int) -> int:
        """Length of the longest tail, from `start` on, that begins a mark."""
        for length in range(min(self._longest, len(text) - start), 0, -1):
            if text[-length:] in self._beginnings:
                return length
        return 0
