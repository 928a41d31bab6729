"""What users of several targets should know."""

from __future__ import annotations

from exporters.quantize.plan import Precision


def note_half_precision(precision: Precision) -> tuple[str, ...]:
    """Of devices that compute in float16 whatever weights are."""
    if precision != "fp32":
        return ()
    return ("fp32 serves to compare graphs on a CPU: NPUs and GPUs compute in float16",)
