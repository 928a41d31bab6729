"""Which of an answer's tokens its text consists of.

Enters: the pieces of a text, each with the tokens that came since the one before. Leaves: those
tokens that have a part in the text, so that joined they are it. Left out are the token that ends a
turn, marks of reasoning and of calls, what a call consists of, and stop strings.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence

from lfm2_deploy.sampling import TokenLogprobs
from lfm2_deploy.tokenizer import Tokenizer

# Of bytes that are no character, a text has this instead.
_REPLACED = "\N{REPLACEMENT CHARACTER}".encode()


class ContentTokens:
    """Finds them while the text grows."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        self._tokenizer = tokenizer
        self._untold: deque[TokenLogprobs] = deque()
        # Text that no token was found for yet, and bytes of the last token that had no text yet.
        self._rest = b""
        self._owed = b""

    def push(self, text: str, logprobs: Sequence[TokenLogprobs]) -> list[TokenLogprobs]:
        """Take in the next piece; return the tokens of what has come."""
        self._untold.extend(logprobs)
        self._rest += text.encode()
        if self._rest.startswith(self._owed):
            self._rest, self._owed = self._rest[len(self._owed) :], b""
        elif self._owed.startswith(self._rest):
            self._rest, self._owed = b"", self._owed[len(self._rest) :]
        found = []
        while self._rest and self._untold:
            entry = self._untold.popleft()
            if self._take(self._tokenizer.token_bytes(entry.token_id)):
                found.append(entry)
        # Tokens come with their text, or before: what is left has none, and ends with this piece.
        self._rest = b""
        return found

    def _take(self, token: bytes) -> bool:
        """Whether the text goes on with this token, of which it may have a beginning only."""
        if not self._rest[:1].isspace():
            token = token.lstrip()  # a text loses the blanks before it
        if not token:
            return False
        if self._rest.startswith(token):
            self._rest = self._rest[len(token) :]
        elif token.startswith(self._rest):
            self._rest, self._owed = b"", token[len(self._rest) :]
        elif self._rest.startswith(_REPLACED) and not token.isascii():
            self._rest = self._rest[len(_REPLACED) :]
        else:
            return False
        return True
