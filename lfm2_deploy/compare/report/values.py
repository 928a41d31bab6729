"""Values of a report as people read them."""

from __future__ import annotations

import math

from lfm2_deploy.charts.numbers import format_number
from lfm2_deploy.compare.result import Estimate

# Less is rounding, whatever the subject; it would stretch the axis for nothing.
LEAST_KLD = 1e-6


def write_value(estimate: Estimate) -> str:
    """The mean, with as many digits as its error warrants, and at least three."""
    value, error = estimate.value, estimate.error
    if not (math.isfinite(value) and math.isfinite(error) and value and 0 < error < abs(value)):
        return format_number(value)
    digits = 2 + math.floor(math.log10(abs(value))) - math.floor(math.log10(error))
    return format_number(value, min(7, max(3, digits)))


def write_error(estimate: Estimate) -> str:
    """ "± 0.0004"; "" where it is not known."""
    known = math.isfinite(estimate.error) and math.isfinite(estimate.value)
    return f"± {format_number(estimate.error, 2)}" if known else ""
