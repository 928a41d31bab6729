"""Numbers as people read them."""

from __future__ import annotations

import math

_SUPERSCRIPTS = str.maketrans("-0123456789", "⁻⁰¹²³⁴⁵⁶⁷⁸⁹")
# Smaller ones are written as powers of ten.
_LEAST_PLAIN = 1e-4
_MOST_PLAIN = 1e6
_LEAST_SHARE = 1e-4
UNKNOWN = "\N{EN DASH}"
_MINUS, _TIMES = "\N{MINUS SIGN}", "\N{MULTIPLICATION SIGN}"


def format_number(value: float | None, digits: int = 3) -> str:
    """0.02134 -> "0.0213", 4.27e-6 -> 4.27 times a power of ten; a dash for what is not known.

    Args:
        value: any number.
        digits: significant ones.
    """
    if value is None:
        return UNKNOWN
    if not math.isfinite(value):
        return "NaN" if math.isnan(value) else "∞" if value > 0 else f"{_MINUS}∞"
    if value == 0:
        return "0"
    rounded = float(f"{value:.{digits - 1}e}")
    if _LEAST_PLAIN <= abs(rounded) < _MOST_PLAIN:
        decimals = max(0, digits - 1 - math.floor(math.log10(abs(rounded))))
        return f"{rounded:,.{decimals}f}".replace("-", _MINUS)
    mantissa, exponent = f"{rounded:.{digits - 1}e}".split("e")
    return f"{mantissa}{_TIMES}10{str(int(exponent)).translate(_SUPERSCRIPTS)}".replace("-", _MINUS)


def format_power(exponent: int) -> str:
    """The label of a tick: -1 -> "0.1", -5 -> "10⁻⁵"."""
    if -3 <= exponent <= 4:
        return f"{10.0**exponent:,.{max(0, -exponent)}f}"
    return f"10{str(exponent).translate(_SUPERSCRIPTS)}"


def format_share(value: float | None) -> str:
    """0.98765 -> "98.8 %"; near 0 and 1, as many digits as tell it from them."""
    if value is None:
        return UNKNOWN
    if not math.isfinite(value):
        return "NaN"
    if 0 < value < _LEAST_SHARE:
        return f"<{100 * _LEAST_SHARE:g} %"
    for decimals in (1, 2, 3):
        text = f"{100 * value:.{decimals}f}"
        if value in (0, 1) or ((value > 0.01 or decimals > 1) and float(text) < 100):
            break
    return f"{text} %"
