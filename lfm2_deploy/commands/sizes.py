"""Sizes as people type them -> bytes."""

from __future__ import annotations

import re
from decimal import Decimal

import typer

_UNITS = {"": 1, "k": 10**3, "m": 10**6, "g": 10**9, "t": 10**12}
_BINARY = {"ki": 2**10, "mi": 2**20, "gi": 2**30, "ti": 2**40}
_FORM = re.compile(r"(-?\d+(?:\.\d+)?)\s*([kmgt]i?)?b?", re.IGNORECASE)


def parse_size(text: str, example: str = "32GB or 16GiB") -> int:
    """ "32GB" -> 32,000,000,000; "16GiB" -> 17,179,869,184; a bare "24G" is GB.

    Args:
        text: as it was typed.
        example: what makes sense in its place.

    Raises:
        typer.BadParameter: it is no size, or not above 0.
    """
    match = _FORM.fullmatch(text.strip())
    if match is None:
        raise typer.BadParameter(f"{text!r} is no size: write for example {example}")
    unit = (match[2] or "").lower()
    # Not int(float()): a size that this program told in decimals must come back as it was.
    size = int(Decimal(match[1]) * {**_UNITS, **_BINARY}[unit])
    if size <= 0:
        raise typer.BadParameter(f"{text!r}: a size must be above 0: write for example {example}")
    return size
