"""Sizes as people read them."""

from __future__ import annotations


def format_bytes(size: int) -> str:
    """1536 -> "1.5 kB"; units are powers of 1000."""
    if size < 1000:
        return f"{size} B"
    value, units = size / 1000, iter(("kB", "MB", "GB", "TB"))
    unit = next(units)
    while value >= 999.5 and unit != "TB":
        value, unit = value / 1000, next(units)
    return f"{value:.3g} {unit}"
