"""Stop strings in a text that arrives in pieces.

Enters: pieces of text. Leaves: the text that may be shown, and which stop string ended
it. Knows nothing of tokens.
"""

from __future__ import annotations

from collections.abc import Sequence


class StopScanner:
    """Lets text through up to the first stop string, however the text is cut.

    A tail that may be the beginning of a stop string is held back until more text
    decides. The string that is complete first wins; of several complete at the same
    character, the longest.
    """

    def __init__(self, stops: Sequence[str]) -> None:
        """Begin a text.

        Args:
            stops: non-empty strings; none of them is ever let through.
        """
        self._stops = tuple(stops)
        self._held = ""
        self.matched: str | None = None

    def push(self, text: str) -> str:
        """Take more text in; return what may be shown now.

        Args:
            text: the next piece. After a match nothing more is shown.
        """
        if self.matched is not None:
            return ""
        text = self._held + text
        found = self._first_match(text)
        if found is not None:
            start, self.matched = found
            self._held = ""
            return text[:start]
        kept = len(text) - self._open_length(text)
        self._held = text[kept:]
        return text[:kept]

    def flush(self) -> str:
        """The text still held back, which turned out to be no stop string."""
        text, self._held = self._held, ""
        return text

    def _first_match(self, text: str) -> tuple[int, str] | None:
        places = ((text.find(stop), stop) for stop in self._stops)
        matches = [(start + len(stop), start, stop) for start, stop in places if start >= 0]
        return min(matches)[1:] if matches else None

    def _open_length(self, text: str) -> int:
        """Length of the longest tail of `text` that begins a stop string."""
        longest = max((len(stop) for stop in self._stops), default=0) - 1
        for length in range(min(longest, len(text)), 0, -1):
            if any(stop.startswith(text[-length:]) for stop in self._stops):
                return length
        return 0
