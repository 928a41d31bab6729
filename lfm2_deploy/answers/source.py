"""A text that arrives in pieces, for parsers written as generators.

Enters: pieces of text. Leaves: characters, to readers that pause (`yield`) where the text
has not arrived yet; and, where a parser gives up, the text that it made nothing of.
"""

from __future__ import annotations

import re
from collections.abc import Generator
from typing import TypeAlias, TypeVar

_T = TypeVar("_T")

# A reader: pauses for more text, and in the end returns what it read.
Reads: TypeAlias = Generator[None, None, _T]

_SPACE = re.compile(r"\s*")


class MalformedError(Exception):
    """The text is not what the parser reads; it never reaches a user."""


class Source:
    """The text, and how far it was read and used.

    `ended` says that no more comes, `closed` that a mark ended it, so that it is whole.
    `plain_quotes` tells readers of strings that every quote closes; see `strings`.
    """

    def __init__(self) -> None:
        self._text, self._place = "", 0
        # What was read and not used: these, and the text from `_used` on.
        self._unused: list[str] = []
        self._used = 0
        self._dropped = 0
        self.ended = self.closed = self.plain_quotes = False

    def feed(self, text: str) -> None:
        """Append a piece."""
        self._unused.append(self._text[self._used : self._place])
        self._dropped += self._place
        self._text = self._text[self._place :] + text
        self._used = self._place = 0

    def end(self, *, closed: bool) -> None:
        """No more comes."""
        self.ended, self.closed = True, closed

    @property
    def position(self) -> int:
        """How many characters were read."""
        return self._dropped + self._place

    def arrived(self, start: int, count: int) -> str:
        """Up to `count` characters, `start` after the next one to read; without a pause."""
        start += self._place
        return self._text[start : start + count]

    def ahead(self, count: int) -> Reads[str]:
        """The next characters, not read yet; fewer only where the text ends."""
        while len(self._text) - self._place < count and not self.ended:
            yield
        return self.arrived(0, count)

    def peek(self) -> Reads[str]:
        """The next character, not read yet; "" at the end."""
        return (yield from self.ahead(1))

    def skip(self, count: int = 1) -> None:
        """Read characters that have been seen ahead."""
        self._place += count

    def run(self, pattern: re.Pattern[str]) -> str:
        """Read what has arrived of a run; without a pause.

        Args:
            pattern: matches every beginning of a run, the empty one included.
        """
        found = pattern.match(self._text, self._place)
        assert found is not None
        self._place = found.end()
        return found[0]

    def take(self, pattern: re.Pattern[str], most: int) -> Reads[str]:
        """Read a whole run.

        Args:
            pattern: as in `run`.
            most: longest run; a longer one is malformed.
        """
        pieces, size = [], 0
        while True:
            piece = self.run(pattern)
            pieces.append(piece)
            size += len(piece)
            if size > most:
                raise MalformedError
            if self._place < len(self._text) or self.ended:
                return "".join(pieces)
            yield

    def skip_space(self) -> Reads[str]:
        """Read white space; return the character after it, as `peek` does."""
        while True:
            self.run(_SPACE)
            if self._place < len(self._text) or self.ended:
                return self.arrived(0, 1)
            yield

    def use(self) -> None:
        """All that was read has been made something of."""
        self._unused.clear()
        self._used = self._place

    def unread(self, count: int) -> None:
        """Go back by characters that were read and not used."""
        read = "".join(self._unused) + self._text[self._used : self._place]
        self._text = read[len(read) - count :] + self._text[self._place :]
        self._unused = [read[: len(read) - count]]
        self._dropped = self.position - count
        self._used = self._place = 0

    def rest(self) -> str:
        """All that was not used: read or not."""
        return "".join(self._unused) + self._text[self._used :]
