"""Results against limits: does everything pass?"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from lfm2_deploy.compare.result import Report, SubjectResult, Verdict

_STEPWISE = "token by token"


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
    return reasons or [f"{name}: {reason}" for reason in _list_of_decoding(subject, limits)]


def _list_of_decoding(subject: SubjectResult, limits: Limits) -> list[str]:
    """What keeps a limit where windows are read as prompts are, and breaks it token by token."""
    scores, decoding = subject.scores, subject.decoding
    if scores is None or decoding is None or not decoding.stands_out:
        return []
    reasons = []
    kld = scores.divergence.mean.value + decoding.excess
    same = scores.same_top.value + decoding.same_top_excess
    if limits.max_kld is not None and not kld <= limits.max_kld:
        reasons.append(
            f"KL divergence is {decoding.divergence.value:.3g} nats {_STEPWISE}, above "
            f"{limits.max_kld:g} ({decoding.together:.3g} where the same are read together)"
        )
    if limits.min_same_top is not None and not same >= limits.min_same_top:
        reasons.append(f"same top token at {same:.2%} {_STEPWISE}, below {limits.min_same_top:.1%}")
    return reasons


def list_notices(report: Report) -> Iterator[str]:
    """What no limit asks for, and a reader must not miss: a line each."""
    for subject in report.subjects:
        start = subject.states.start if subject.states else None
        if start is not None:
            what = "logits" if start.kind == "logits" else "states"
            where = f"the error of its {what} jumps in layer {start.layer}"
            yield f"{subject.info.name}: {where}, as a fault does and rounding seldom."
        decoding = subject.decoding
        told = any(
            reason.startswith(f"{subject.info.name}: ") and _STEPWISE in reason
            for reason in report.verdict.reasons
        )
        if decoding is not None and decoding.stands_out and not told:
            alone, together = decoding.divergence.value, decoding.together
            yield (
                f"{subject.info.name}: KL divergence is {alone:.2g} nats {_STEPWISE} and "
                f"{together:.2g} together: decoding computes something else than prompts do."
            )
