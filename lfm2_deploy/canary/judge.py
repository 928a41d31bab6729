"""Readings of a canary -> whether a device computes this model. Pure.

What is usual depends on the model and on what the device keeps activations in. The canary says
what rounding them to 8 bits does to this very model (`Canary.noise`); other kinds are parts of it.
A row's error is the median over its calls: where rounding sends a token to another expert, one
call is off and not the row; a fault of the graph, a kernel or a state stays in the row. What stays
in a part of a model, such as one expert, shows in a few calls: each is held to what rounding does
to that very call (`Call.noise`). Faults that show too little are recognised by how they change the
logits (`Canary.signatures`).

The limits are between what was measured of healthy bundles and of planted faults: docs/canary.md.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from statistics import median_high
from typing import Any, Literal

import numpy as np

from lfm2_deploy.canary.record import Call, Canary, Signature
from lfm2_deploy.canary.run import DoubleArray, Reading

Outcome = Literal["passed", "doubtful", "failed"]

# The usual error of healthy devices, as parts of the noise of 8-bit activations. "" is unknown.
USUAL = {"float32": 1 / 200, "float16": 1 / 4, "int16": 1.0, "int8": 1.0, "": 1.0}
# Healthy rows are at up to 1.7 times the usual, and 3.1 in a random mixture of four layers; planted
# faults at 5.7 and more, but for what the rules below find.
DOUBTFUL = 5.0
# So is a quarter of all calls; with planted faults of keys and values, 2.8 and more. For canaries
# that do not know their calls' noise.
_QUARTER = 2.5
# A single call beyond so many times its own noise is doubtful, and two calls beyond so many.
# Healthy, the demo model has 1.2 at most; of 48 random models' worst calls, one had 5.2 and the
# others 2.7, second ones 2.05. Of 36 experts that answered zero, 35 were beyond a limit.
_CALL, _TWO_CALLS = 3.0, 2.2
# Rounding explains this much more than in the median call only where it moves a token to another
# expert: by as much whatever the arithmetic.
_MOVED = 2.0
# A row this far off, as a part of the logits' spread, writes other text.
_FAILED, _FAILED_FACTOR = 0.1, 2.0
# A signature is there where the error points its way, by about as much, in half of its calls:
# planted in one layer, correlations are 0.68 to 0.77, and 0.37 where it shows little. Healthy
# devices have up to 0.42, in random mixtures where rounding moves one token as the fault would;
# their sizes are below 0.32.
_CORRELATION, _SIZES = 0.35, (0.4, 2.0)
# Other faults correlate, too, by up to 0.56: where a call is far off, it takes more to name one.
_SURE = 0.6


@dataclass(frozen=True, slots=True)
class Verdict:
    """What a canary says of a device.

    Args:
        outcome: "passed", "doubtful" or "failed".
        reason: what was seen against what was expected; "" where it passed.
        error: of the worst row, as a part of the logits' spread; infinite for no numbers.
        limit: up to which it passes.
        kld: largest KL divergence of a call, in nats.
        same_top: calls with the right likeliest token.
        calls: all of them.
        seconds: what it took.
    """

    outcome: Outcome
    reason: str
    error: float
    limit: float
    kld: float
    same_top: int
    calls: int
    seconds: float = 0.0

    def describe(self) -> dict[str, Any]:
        """As a JSON object, which knows no infinity."""
        return {k: None if v == math.inf else v for k, v in asdict(self).items()}


def judge(
    canary: Canary, readings: Sequence[Reading], arithmetic: str, seconds: float = 0.0
) -> Verdict:
    """Hold readings against what is usual.

    Args:
        canary: what must come out.
        readings: what came out, of `run_canary`.
        arithmetic: what activations are kept in, as `RuntimeInfo.arithmetic` has it.
        seconds: what running them took.
    """
    limit = DOUBTFUL * canary.noise * USUAL.get(arithmetic, USUAL[""])
    failed_from = max(_FAILED, _FAILED_FACTOR * limit)
    worst = max(_group(readings), key=_measure_row)
    error = _measure_row(worst)
    outcome: Outcome = "passed"
    reason = ""
    if not all(math.isfinite(r.error) for r in readings):
        outcome, reason = "failed", _explain_nan(readings)
    elif error > limit:
        outcome = "failed" if error > failed_from else "doubtful"
        reason = _explain(worst, limit)
    if outcome != "failed":
        doubt = _find_doubt(canary, readings, USUAL.get(arithmetic, USUAL[""]))
        outcome, reason = ("doubtful", doubt) if doubt else (outcome, reason)
    return Verdict(
        outcome,
        reason,
        error,
        limit,
        max(r.kld for r in readings),
        sum(r.token == r.expected for r in readings),
        len(readings),
        seconds,
    )


def _find_doubt(canary: Canary, readings: Sequence[Reading], usual: float) -> str:
    """What does not show in a row's median; "" for nothing."""
    likeness = {s.fault: _measure_likeness(canary, s, readings) for s in canary.signatures}
    sure = next((fault for fault, found in likeness.items() if found >= _SURE), "")
    if sure:
        return f"logits are off as if {sure}"
    calls = {row.name: row.calls for row in canary.rows}
    knows = all(call.noise > 0 for row in canary.rows for call in row.calls)
    outlier = _find_outlier(canary, calls, readings, usual) if knows else ""
    likely = max(likeness, key=lambda fault: likeness[fault], default="")
    if not outlier and likely and likeness[likely] >= _CORRELATION:
        return f"logits are off as if {likely}"
    if knows:
        return outlier
    limit = _QUARTER * usual * canary.noise
    quarter = float(np.quantile([reading.error for reading in readings], 0.75))
    if quarter <= limit:
        return ""
    return (
        f"in a quarter of all calls logits are off by {quarter:.2g} of their spread or more, "
        f"expected at most {limit:.2g}"
    )


def _find_outlier(
    canary: Canary,
    calls: Mapping[str, Sequence[Call]],
    readings: Sequence[Reading],
    usual: float,
) -> str:
    """A call, or two, that rounding does not explain; "" for none."""
    errors: dict[tuple[str, int], float] = {}
    for reading in readings:
        call, key = calls[reading.row][reading.number], (reading.row, reading.number)
        allowed = max(call.noise, canary.noise) * _choose_part(call, canary.noise, usual)
        # Alone and in company, a call counts once.
        errors[key] = max(errors.get(key, 0.0), reading.error / allowed)
        if errors[key] > _CALL:
            return (
                f"row {reading.row!r} is off at token {reading.length} ({reading.kind}) by more "
                f"than rounding explains: logits by {reading.error:.2g} of their spread, expected "
                f"at most {_CALL * allowed:.2g}"
            )
    many = sum(error > _TWO_CALLS for error in errors.values())
    if many < 2:
        return ""
    return f"in {many} calls logits are off by over {_TWO_CALLS:g} times what rounding explains"


def _choose_part(call: Call, noise: float, usual: float) -> float:
    """Which part of a call's noise is usual."""
    return max(usual, 1.0) if call.noise > _MOVED * noise else usual


def _group(readings: Iterable[Reading]) -> list[list[Reading]]:
    """Readings of each row, alone and in company."""
    groups: dict[tuple[str, int], list[Reading]] = {}
    for reading in readings:
        groups.setdefault((reading.row, reading.rows), []).append(reading)
    return list(groups.values())


def _measure_row(row: Sequence[Reading]) -> float:
    return median_high(reading.error for reading in row)


def _explain(row: Sequence[Reading], limit: float) -> str:
    first = next(reading for reading in row if reading.error > limit)
    company = f", in a batch of {first.rows}," if first.rows > 1 else ""
    if first.token == first.expected:
        seen = f"its likeliest token is right ({first.token})"
    else:
        seen = (
            f"its likeliest token is {first.token}, expected {first.expected} by "
            f"{first.margin:.2g} nats"
        )
    return (
        f"row {first.row!r}{company} goes wrong at token {first.length} ({first.kind}): logits are "
        f"off by {first.error:.2g} of their spread, and by {_measure_row(row):.2g} over the row, "
        f"expected at most {limit:.2g}; {seen}"
    )


def _explain_nan(readings: Sequence[Reading]) -> str:
    first = next(reading for reading in readings if not math.isfinite(reading.error))
    return (
        f"row {first.row!r} has logits that are no numbers (NaN or infinity) at token "
        f"{first.length} ({first.kind}), expected token {first.expected}"
    )


def _measure_likeness(canary: Canary, signature: Signature, readings: Sequence[Reading]) -> float:
    """How the error correlates with a known fault; 0 where it is of another size."""
    row = next(row for row in canary.rows if row.name == signature.row)
    changes = dict(zip(signature.calls, signature.changes, strict=True))
    off, wanted = [], []
    for reading in readings:
        shown = changes.get(reading.number) if reading.row == row.name else None
        if shown is not None and reading.rows == 1 and math.isfinite(reading.error):
            call = row.calls[reading.number]
            # Calls count by how well a change shows in them.
            noise = call.noise or 1.0
            off.append(reading.off / noise)
            wanted.append(np.array(shown) * signature.unit / call.expected.spread / noise)
    if not off:
        return 0.0
    low, high = _SIZES
    # Where one call goes to the expert that the fault would choose, rounding may have sent it.
    within = [low <= _project(*pair) <= high for pair in zip(off, wanted, strict=True)]
    seen, fault = np.concatenate(off), np.concatenate(wanted)
    if 2 * sum(within) < len(within) or not low <= _project(seen, fault) <= high:
        return 0.0
    return float(seen @ fault) / math.sqrt(float(seen @ seen) * float(fault @ fault))


def _project(seen: DoubleArray, fault: DoubleArray) -> float:
    """How much of a fault is in an error."""
    size = float(fault @ fault)
    return float(seen @ fault) / size if size > 0 else 0.0
