"""Sizes as people read them."""

from __future__ import annotations

_UNITS = (("TB", 10**12), ("GB", 10**9), ("MB", 10**6), ("kB", 10**3))


def format_limit(size: int, up: bool = False) -> str:
    """1234567 -> "1.2345MB", to be typed back: never more than `size`, or with `up` never less."""
    unit, scale = next(((unit, scale) for unit, scale in _UNITS if size >= scale), ("B", 1))
    step = max(1, scale // 10**4)
    rounded = -(-size // step) * step if up else size // step * step
    return f"{rounded / scale:.4f}".rstrip("0").rstrip(".") + unit


def format_bytes(size: int) -> str:
    """1536 -> "1.5 kB"; units are powers of 1000."""
    if size < 1000:
        return f"{size} B"
    value, units = size / 1000, iter(("kB", "MB", "GB", "TB"))
    unit = next(units)
    while value >= 999.5 and unit != "TB":
        value, unit = value / 1000, next(units)
    return f"{value:.3g} {unit}"
