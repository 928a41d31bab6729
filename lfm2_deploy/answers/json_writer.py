"""Writes one JSON value piece by piece, so that it can be finished at any point.

Enters: values, keys and characters in order. Leaves: JSON text as it grows.
"""

from __future__ import annotations

import json
import re

_SURROGATE = re.compile("[\ud800-\udfff]")


def quote_json(text: str) -> str:
    """A string as JSON; halves of surrogate pairs are escaped, which keeps the text valid."""
    quoted = json.dumps(text, ensure_ascii=False)
    return _SURROGATE.sub(lambda found: f"\\u{ord(found[0]):04x}", quoted)


class JsonWriter:
    """A JSON text under construction.

    A key is written together with the beginning of its value: there is none without one.
    `is_empty` says that nothing was written ever.
    """

    def __init__(self) -> None:
        self._new: list[str] = []
        self._closers: list[str] = []
        self._key: str | None = None
        self._is_first = self.is_empty = True

    def open_object(self) -> None:
        """Begin an object; `close` ends it."""
        self._open("{", "}")

    def open_array(self) -> None:
        """Begin an array; `close` ends it."""
        self._open("[", "]")

    def open_string(self) -> None:
        """Begin a string, to be filled with `add_text`; `close` ends it."""
        self._open('"', '"')

    def add_text(self, text: str) -> None:
        """Append characters to the open string."""
        self._new.append(quote_json(text)[1:-1])

    def set_key(self, key: str) -> None:
        """The key of the value that follows, as JSON text."""
        self._key = key

    def add(self, value: str) -> None:
        """Append a whole value that is JSON text already."""
        self._begin_value()
        self._new.append(value)

    def close(self) -> None:
        """End what was opened last."""
        self._new.append(self._closers.pop())
        self._is_first = False

    def finish(self) -> None:
        """End all that is open."""
        while self._closers:
            self.close()

    def take(self) -> str:
        """What was written since the last call."""
        text = "".join(self._new)
        self._new.clear()
        return text

    def _open(self, opener: str, closer: str) -> None:
        self._begin_value()
        self._new.append(opener)
        self._closers.append(closer)
        self._is_first = True

    def _begin_value(self) -> None:
        if not self._is_first:
            self._new.append(", ")
        if self._key is not None:
            self._new.append(f"{self._key}: ")
        self._key, self._is_first, self.is_empty = None, False, False
