"""Tokens one at a time, at positions that a subject scored in one piece.

A window is read as a prompt is, so what only decoding does (a row of keys that is not written, a
state that is lost between calls) shows in none of its scores. Here a few windows are read again to
where scoring begins, and then on by single tokens. Both ways are held against the reference at the
same positions, so that their difference is known far better than either.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from lfm2_deploy.compare.metrics import DoubleArray, PositionScores, score_positions
from lfm2_deploy.compare.protocol import Windows
from lfm2_deploy.compare.reference import Reference
from lfm2_deploy.compare.result import Decoding, Estimate
from lfm2_deploy.compare.scorer import check_finite
from lfm2_deploy.compare.summarize import estimate, standard_error
from lfm2_deploy.contracts import FloatArray, Progress, Runtime

# A fault of decoding is there from the first or second token on, so many short pieces say more
# than few long ones; 128 calls in all.
_WINDOWS, _STEPS = 8, 16
_LEAST = 1e-9


@dataclass(frozen=True, slots=True)
class Piece:
    """A window read on by single tokens, beside what it scored in one piece.

    Args:
        alone: scores of its first scored positions, one at a time.
        together: scores of the same positions, of the whole window.
    """

    alone: PositionScores
    together: PositionScores


def decode_windows(
    runtime: Runtime,
    windows: Windows,
    together: Sequence[PositionScores],
    reference: Reference,
    progress: Progress,
    what: str,
) -> Decoding | None:
    """Read some windows on by single tokens.

    Args:
        runtime: what to try.
        windows: the protocol's.
        together: scores of every window, as it was read in one piece.
        reference: logits of the scored positions.
        progress: told of each window.
        what: for progress.

    Returns:
        None where windows were read token by token in the first place.

    Raises:
        GenerationError: logits are not finite.
    """
    if not runtime.info.capabilities.scores_all:
        return None
    count = min(_WINDOWS, len(windows.chunks))
    steps = min(_STEPS, windows.positions)
    pieces = []
    session = runtime.open(1, windows.first + steps)
    for done in range(count):
        progress(what, done, count)
        number = done * len(windows.chunks) // count
        session.reset()
        tokens = windows.read_by(number)[: windows.first + steps]
        session.prefill([tokens[: windows.first]])
        rows = [session.decode([token])[0].copy() for token in tokens[windows.first :]]
        logits: FloatArray = np.stack(rows)
        check_finite(logits, windows.first, number)
        targets = np.array(windows.targets(number)[:steps], np.int64)
        truth = reference.read(number)[:steps]
        alone = score_positions(truth, logits, targets, reference.floor)
        pieces.append(Piece(alone, together[number].take(slice(0, steps))))
    progress(what, count, count)
    return summarize_pieces(pieces, max(float(scores.divergence.max()) for scores in together))


def summarize_pieces(pieces: Sequence[Piece], most_together: float) -> Decoding:
    """What decoding costs.

    Args:
        pieces: all of one length.
        most_together: see `Decoding`.
    """
    alone = estimate([piece.alone.divergence for piece in pieces])
    together = estimate([piece.together.divergence for piece in pieces]).value
    same = [p.alone.same_top.astype(float) - p.together.same_top for p in pieces]
    return Decoding(
        positions=sum(len(piece.alone.divergence) for piece in pieces),
        divergence=alone,
        together=together,
        excess=alone.value - together,
        same_top_excess=estimate(same).value,
        log_ratio=_estimate_ratio(pieces),
        most=float(max(piece.alone.divergence.max() for piece in pieces)),
        most_together=most_together,
    )


def _estimate_ratio(pieces: Sequence[Piece]) -> Estimate:
    """Of logarithms, with the larger of its errors over pieces and over positions: there are few
    of the first, and the second depend on each other."""
    logs = [_log(p.alone.divergence) - _log(p.together.divergence) for p in pieces]
    by_piece, by_position = estimate(logs), standard_error(np.concatenate(logs))
    return Estimate(by_piece.value, float(np.nanmax([by_piece.error, by_position, 0.0])))


def _log(divergence: DoubleArray) -> DoubleArray:
    """Logarithms; what no float32 logits can tell is all the same."""
    logs: DoubleArray = np.log(np.maximum(divergence, _LEAST))
    return logs
