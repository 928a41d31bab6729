"""Two sets of states after the same tokens -> how far apart, and where it begins."""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from dataclasses import replace

import numpy as np

from lfm2_deploy.compare.result import ErrorStart, StateError, StateErrors, StateRow
from lfm2_deploy.compare.scorer import States
from lfm2_deploy.config import Lfm2Config
from lfm2_deploy.contracts import FloatArray
from lfm2_deploy.states import StateKind, list_states

# A layer whose error is so many times that of all layers before it has a fault of its own:
# rounding grows from layer to layer by far less (tests/compare/test_states.py).
JUMP = 4.0
# Below this, errors are those of float32 arithmetic in another order.
NOTHING = 1e-4
# The first layer has none before it, so its error is held against its precision. int4 rounds
# states by up to a fifth (measured on random and trained models).
_MOST_AT_FIRST = {"fp32": NOTHING, "fp16": 1e-2}
_MOST_AT_FIRST_ROUNDED = 0.3
# Most rows of a length showed it, so this is unlikely, but a model may route on a knife's edge.
_ROUTED = (
    "; or, in a mixture of experts, rounding sent the last tokens of most rows to other experts: "
    "see whether another --text shows it too"
)


def compare_states(
    rows: Sequence[tuple[int, States, States]],
    config: Lfm2Config,
    precisions: Collection[str],
    logits_error: float = 0.0,
) -> StateErrors:
    """Compare states row by row, and then what comes after all of them.

    Of rows of one length the largest error of each state counts. In a mixture of experts that
    is rounded it is the median: a convolution remembers two tokens, and one of them that went
    to other experts moves its whole state (seen on a random model in int8: 0.22 where 57 of 60
    rows have 0.05). A fault shows in most rows.

    Args:
        rows: tokens, the reference's states and the subject's.
        config: the model's.
        precisions: the reference's and the subject's: how far off the first layer may be.
        logits_error: `relative_error` of the logits after the longest row's tokens.
    """
    first = max(_MOST_AT_FIRST.get(name, _MOST_AT_FIRST_ROUNDED) for name in precisions)
    routed = config.moe is not None and set(precisions) != {"fp32"}
    every = [StateRow(n, _measure(ours, theirs, config)) for n, ours, theirs in rows]
    measured = tuple(
        _gather([row for row in every if row.tokens == tokens], _take_median if routed else max)
        for tokens in sorted({row.tokens for row in every})
    )
    # Faults in attention show where there is much to look back on, and the shortest row is
    # where rounding has had the least time to spread.
    starts = [start for row in measured if (start := find_start(row.errors, first))]
    start = min(starts, key=lambda found: found.layer, default=None)
    # Tokens that went astray count in the logits, so here they count in states as well.
    start = start or _find_start_behind(every, logits_error)
    if start is not None and routed:
        start = replace(start, advice=f"{start.advice}{_ROUTED}")
    return StateErrors(measured, start)


def _find_start_behind(rows: Sequence[StateRow], logits_error: float) -> ErrorStart | None:
    """The last layer, where the logits are much worse than any state."""
    errors = [found for row in rows for found in row.errors]
    before = max((found.error for found in errors), default=0.0)
    if not errors or logits_error <= max(JUMP * before, NOTHING):
        return None
    last = max(found.layer for found in errors)
    advice = (
        f"all states are right, so look at what layer {last} does after its own: convolution or "
        "attention, out_proj, feed-forward; and at the final norm and the head"
    )
    return ErrorStart(last, "logits", logits_error, before, advice)


def relative_error(reference: FloatArray, tested: FloatArray) -> float:
    """Root mean square of the difference over that of the reference.

    A reference of zeros gives 0 where the other is zero too, and 1 where not.
    """
    if reference.shape != tested.shape:
        return float("nan")
    size = float(np.sqrt(np.mean(np.square(reference, dtype=np.float64))))
    gap = float(np.sqrt(np.mean(np.square(reference - tested, dtype=np.float64))))
    if size == 0:
        return float(gap > 0)
    return gap / size


def find_start(errors: Sequence[StateError], most_at_first: float) -> ErrorStart | None:
    """The first layer whose error is much larger than that of all before it.

    Args:
        errors: of every state.
        most_at_first: what the first layer's may be.
    """
    before = 0.0
    for layer in sorted({found.layer for found in errors}):
        own = [found for found in errors if found.layer == layer]
        worst = max(own, key=lambda found: _rank(found.error))
        error = _rank(worst.error)
        limit = max(JUMP * before, NOTHING) if before else most_at_first
        if error > limit:
            advice = _advise(layer, worst.kind)
            return ErrorStart(layer, worst.kind, worst.error, before, advice)
        # A first layer that is exact is no measure for those that follow.
        before = max(before, error, NOTHING / JUMP)
    return None


def _gather(rows: Sequence[StateRow], choose: Callable[[list[float]], float]) -> StateRow:
    """Rows after as many tokens -> one. What is not finite in one row is so in all."""
    errors = []
    for same in zip(*(row.errors for row in rows), strict=True):
        values = [found.error for found in same]
        value = choose(values) if np.isfinite(values).all() else float("nan")
        errors.append(replace(same[0], error=value))
    return StateRow(rows[0].tokens, tuple(errors))


def _take_median(values: list[float]) -> float:
    """Of an even number, the lower of both in the middle: more than half must be above."""
    return sorted(values)[(len(values) - 1) // 2]


def _rank(error: float) -> float:
    return error if np.isfinite(error) else np.inf


def _measure(ours: States, theirs: States, config: Lfm2Config) -> tuple[StateError, ...]:
    return tuple(
        StateError(spec.layer, spec.kind, relative_error(ours[spec.input], theirs[spec.input]))
        for spec in list_states(config)
        if spec.input in ours and spec.input in theirs
    )


def _advise(layer: int, kind: StateKind) -> str:
    own = {
        "conv": "its in_proj and conv state",
        "key": "its k_proj, key norm, rotary positions and key cache",
        "value": "its v_proj and value cache",
    }[kind]
    if layer == 0:
        return f"look at the embedding, and at layer 0: {own}"
    # States are taken before a layer's own output projection and feed-forward block.
    return (
        f"look at layer {layer}: {own}; and at what layer {layer - 1} does after its own "
        "states: convolution or attention, out_proj, feed-forward"
    )
