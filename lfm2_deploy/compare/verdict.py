"""Results against limits: does everything pass?"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from lfm2_deploy.compare.result import SubjectResult, Verdict


@dataclass(frozen=True, slots=True)
class Limits:
    """What every subject must keep.

    Args:
        max_kld: most mean KL divergence, nats; None for no limit.
        min_same_top: least share of positions with the same likeliest token; likewise.
    """

    max_kld: float | None = None
    min_same_top: float | None = None


def give_verdict(subjects: Sequence[SubjectResult], limits: Limits) -> Verdict:
    """Hold every subject against the limits; one that failed does not pass."""
    parts = []
    if limits.max_kld is not None:
        parts.append(f"KL divergence at most {limits.max_kld:g} nats")
    if limits.min_same_top is not None:
        parts.append(f"same top token at least {limits.min_same_top:.1%}")
    reasons = [reason for subject in subjects for reason in _list_reasons(subject, limits)]
    failed = [subject.info.name for subject in subjects if _list_reasons(subject, limits)]
    rule = " and ".join(parts)
    return Verdict(not reasons, rule, tuple(reasons), limits.max_kld, tuple(failed))


def _list_reasons(subject: SubjectResult, limits: Limits) -> list[str]:
    name, scores = subject.info.name, subject.scores
    if scores is None:
        return [f"{name}: {subject.failure}"]
    reasons = []
    kld, same = scores.divergence.mean.value, scores.same_top.value
    # Written so that nan does not pass.
    if limits.max_kld is not None and not kld <= limits.max_kld:
        shown = "is not a number" if math.isnan(kld) else f"is {kld:.3g} nats"
        reasons.append(f"{name}: KL divergence {shown}, above {limits.max_kld:g}")
    if limits.min_same_top is not None and not same >= limits.min_same_top:
        reasons.append(f"{name}: same top token at {same:.2%}, below {limits.min_same_top:.1%}")
    return reasons
