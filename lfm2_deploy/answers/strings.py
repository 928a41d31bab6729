"""Quoted strings as models write them, character by character.

Enters: a `Source` that stands at a quote. Leaves: the characters meant, as they come.

Some templates show models strings whose quotes are not escaped (`'sed -n '1,9p' f'`), and
models write likewise. So a quote closes a string only where the call can go on after it;
what would be shown after a doubtful one is held back. If the string then never ends, that
quote was its end after all, and from there on every quote is taken at its word.
"""

from __future__ import annotations

import enum
import re
from collections.abc import Callable

from lfm2_deploy.answers.source import MalformedError, Reads, Source

QUOTES = ("'", '"')

_PLAIN = {quote: re.compile(rf"[^\\{quote}]*") for quote in QUOTES}
_KEYWORD = re.compile(r"[\w.$@-]+\s*=(?!=)")
_KEYWORD_BEGUN = re.compile(r"[\w.$@-]*\s*=?")
_CLOSERS = re.compile(r"[\s)\]}]*")
# A quote followed by more white space and names than this closes.
_MOST_AHEAD = 256

_ESCAPES = {
    "\n": "",
    "\\": "\\",
    "'": "'",
    '"': '"',
    "a": "\a",
    "b": "\b",
    "f": "\f",
    "n": "\n",
    "r": "\r",
    "t": "\t",
    "v": "\v",
}
_HEX_DIGITS = {"x": 2, "u": 4, "U": 8}
_HEX = re.compile(r"[0-9a-fA-F]+")
_OCTAL = re.compile(r"[0-7]{1,3}")


class Place(enum.Enum):
    """Where a string stands: the characters that may follow it there."""

    ARGUMENT = ",)"
    POSITIONAL = "),"  # what follows its comma need not be a keyword
    ITEM = ",])}"
    VALUE = ",}"
    KEY = ":,}"


def read_string(
    source: Source, place: Place, put: Callable[[str], None], *, is_raw: bool = False
) -> Reads[None]:
    """Read one string, opening and closing quotes included.

    Args:
        source: at the opening quote; quotes may be tripled.
        place: where the string stands.
        put: takes the characters meant.
        is_raw: backslashes stand for themselves.

    Raises:
        MalformedError: the text ends within the string.
    """
    quote = (yield from source.peek()) or "'"
    closing = quote
    # Two quotes are an empty string, or the beginning of three.
    if (yield from source.ahead(2)) == quote * 2 and (yield from source.ahead(3)) == quote * 3:
        closing = quote * 3
    source.skip(len(closing))
    # Since a doubtful quote at position `doubt`.
    held: list[str] | None = None
    doubt = 0
    while True:
        following = yield from source.peek()
        if following == "\\":
            text = yield from _read_escape(source, quote, is_raw)
        elif following and following != quote:
            text = source.run(_PLAIN[quote])
        elif following and (yield from _closes(source, closing, place)):
            source.skip(len(closing))
            if held:
                put("".join(held))
            return
        elif following:
            if held is None:
                held, doubt = [], source.position
            source.skip()
            text = following
        elif held is None:
            raise MalformedError
        else:
            source.unread(source.position - doubt)
            source.plain_quotes, held, text = True, None, ""
        if text:
            put(text) if held is None else held.append(text)


def _closes(source: Source, closing: str, place: Place) -> Reads[bool]:
    """Whether the quote that comes next ends the string."""
    if len(closing) > 1:
        return (yield from source.ahead(len(closing))) == closing
    while not source.plain_quotes:
        ahead = source.arrived(1, _MOST_AHEAD)
        verdict = _can_follow(ahead, place)
        if verdict is not None:
            return verdict
        if source.ended or len(ahead) == _MOST_AHEAD:
            return True
        yield
    return True


def _can_follow(ahead: str, place: Place) -> bool | None:
    """Whether a string may be followed by this; None where more text must decide."""
    ahead = ahead.lstrip()
    if not ahead:
        return None
    first, after = ahead[0], ahead[1:].lstrip()
    if first not in place.value:
        return False
    if place is Place.KEY:
        return True
    if not after:
        return None
    if first != ",":
        return after[0] in ",;)]}{["
    if place is Place.ARGUMENT:
        return _can_be_argument(after)
    return place is not Place.VALUE or after[0] in "'\"}_" or after[0].isalnum()


def _can_be_argument(text: str) -> bool | None:
    if text[0] in ")*":
        return True
    # "a=" may yet become "a==".
    return None if _KEYWORD_BEGUN.fullmatch(text) else _KEYWORD.match(text) is not None


def _read_escape(source: Source, quote: str, is_raw: bool) -> Reads[str]:
    """Read a backslash and what it escapes; as in Python, an unknown escape stays as it is."""
    code = (yield from source.ahead(2))[1:]
    if code == quote and (yield from _ends_after_backslash(source)):
        source.skip()
        return "\\"
    if is_raw or not code:
        source.skip(1 + len(code))
        return "\\" + code
    if code in _ESCAPES:
        source.skip(2)
        return _ESCAPES[code]
    digits = (yield from source.ahead(2 + _HEX_DIGITS.get(code, 0)))[2:]
    if code in _HEX_DIGITS and len(digits) == _HEX_DIGITS[code] and _HEX.fullmatch(digits):
        value = int(digits, 16)
        source.skip(2 + len(digits))
        return chr(value) if value <= 0x10FFFF else f"\\{code}{digits}"
    octal = _OCTAL.match((yield from source.ahead(4))[1:]) if code in "01234567" else None
    source.skip(1 + (len(octal[0]) if octal else 1))
    return chr(int(octal[0], 8)) if octal else "\\" + code


def _ends_after_backslash(source: Source) -> Reads[bool]:
    """Whether the call's end follows an escaped quote: then the string ends in a backslash.

    `path='C:\\')]` is what a model writes that has seen no escapes.
    """
    while True:
        ahead = source.arrived(2, _MOST_AHEAD)
        if not _CLOSERS.fullmatch(ahead) or len(ahead) == _MOST_AHEAD:
            return False
        if source.ended:
            return source.closed and bool(ahead.strip())
        yield
