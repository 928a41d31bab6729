"""Sizes as people type them -> bytes."""

from __future__ import annotations

import re

import typer

_UNITS = {"": 1, "k": 10**3, "m": 10**6, "g": 10**9, "t": 10**12}
_BINARY = {"ki": 2**10, "mi": 2**20, "gi": 2**30, "ti": 2**40}
_FORM = re.compile(r"(\d+(?:\.\d+)?)\s*([kmgt]i?)?b?", re.IGNORECASE)


def parse_size(text: str) -> int:
    """ "32GB" -> 32,000,000,000; "16GiB" -> 17,179,869,184; a bare "24G" is GB.

    Raises:
        typer.BadParameter: it is no size, or 0.
    """
    match = _FORM.fullmatch(text.strip())
    size = 0
    if match:
        unit = (match[2] or "").lower()
        size = int(float(match[1]) * {**_UNITS, **_BINARY}[unit])
    if size <= 0:
        raise typer.BadParameter(f"{text!r} is no size: write for example 32GB or 16GiB")
    return size
