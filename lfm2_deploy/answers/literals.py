"""Words of a call, such as True, null or -7.5, as JSON text.

Enters: a word without quotes, in Python's or JSON's spelling. Leaves: JSON text.
"""

from __future__ import annotations

import math
import re

from lfm2_deploy.answers.json_writer import quote_json

_CONSTANTS = {
    "True": "true",
    "False": "false",
    "None": "null",
    "true": "true",
    "false": "false",
    "null": "null",
}
_NUMBER = re.compile(r"([+-]?)([0-9]*)(?:(\.)([0-9]*))?([eE][+-]?[0-9]+)?")
_BASED = re.compile(r"([+-]?)(0[xX][0-9a-fA-F]+|0[oO][0-7]+|0[bB][01]+)")
_GROUPS = re.compile(r"(?<=[0-9])_(?=[0-9])")


def word_to_json(word: str, kind: str | None = None) -> str:
    """A word as JSON.

    What is neither a constant nor a number is taken for a string whose quotes were forgotten.

    Args:
        word: not empty.
        kind: the one JSON type that the schema allows, where known. A number is kept as it is
            written where a string is wanted, since 007 cannot be meant as 7 there.
    """
    constant = _CONSTANTS.get(word)
    if constant is not None:
        return constant
    number = None if kind == "string" else _number_to_json(word)
    return quote_json(word) if number is None else number


def _number_to_json(word: str) -> str | None:
    """Digits as they are written; None for what is no number, or none that JSON readers hold."""
    word = _GROUPS.sub("", word)
    based = _BASED.fullmatch(word)
    if based:
        return f"{'-' if based[1] == '-' else ''}{int(based[2], 0)}"
    found = _NUMBER.fullmatch(word)
    if found is None:
        return None
    sign, whole, dot, part, power = (group or "" for group in found.groups())
    if not whole + part or not math.isfinite(float(word)):
        return None
    sign = "-" if sign == "-" else ""
    fraction = f".{part or '0'}" if dot else ""
    return f"{sign}{whole.lstrip('0') or '0'}{fraction}{power}"
