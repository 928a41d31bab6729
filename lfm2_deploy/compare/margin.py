"""How much it matters that a greedy text goes on otherwise than the reference."""

from __future__ import annotations

from typing import Literal

# Rules of thumb: rounding to 4 bits moves a choice by tenths of a nat, a fault by whole ones.
NEAR_TIE, FAULT = 0.25, 1.0


def judge_margin(margin: float) -> Literal["near tie", "between", "fault"]:
    """What a difference means by which the reference prefers its own token; in nats."""
    if margin < NEAR_TIE:
        return "near tie"
    return "fault" if margin >= FAULT else "between"
