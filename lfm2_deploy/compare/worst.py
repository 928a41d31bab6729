"""The positions where two models differ most, kept while windows go by."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from lfm2_deploy.compare.metrics import PositionScores, log_softmax
from lfm2_deploy.compare.protocol import Windows
from lfm2_deploy.compare.result import WorstPosition
from lfm2_deploy.compare.words import Words
from lfm2_deploy.contracts import FloatArray

_CONTEXT_TOKENS = 40


class WorstPositions:
    """Keeps the worst positions with what both models say there.

    Args:
        windows: what is read.
        words: turns tokens into text.
        count: how many to keep.
    """

    def __init__(self, windows: Windows, words: Words, count: int) -> None:
        self._windows, self._words, self._count = windows, words, count
        self._kept: list[WorstPosition] = []

    def look(
        self, window: int, scores: PositionScores, reference: FloatArray, tested: FloatArray
    ) -> None:
        """Take note of one window's worst positions.

        Args:
            window: its number.
            scores: of its positions.
            reference: logits float32 [N, V].
            tested: logits float32 [N, V].
        """
        worst = np.argsort(-scores.divergence, kind="stable")[: self._count]
        full = len(self._kept) == self._count
        least = self._kept[-1].divergence if full and self._kept else -np.inf
        for place in worst.tolist():
            if scores.divergence[place] > least:
                self._kept.append(self._describe(window, place, scores, reference, tested))
        self._kept.sort(key=lambda found: -found.divergence)
        del self._kept[self._count :]

    def list(self) -> tuple[WorstPosition, ...]:
        """Worst first."""
        return tuple(self._kept)

    def _describe(
        self,
        window: int,
        place: int,
        scores: PositionScores,
        reference: FloatArray,
        tested: FloatArray,
    ) -> WorstPosition:
        position = self._windows.first + place
        row = self._windows.read_by(window)
        before: Sequence[int] = row[max(0, position + 1 - _CONTEXT_TOKENS) : position + 1]
        target = self._windows.targets(window)[place]
        ours, theirs = (log_softmax(logits[place : place + 1])[0] for logits in (reference, tested))
        return WorstPosition(
            window=window,
            position=position,
            divergence=float(scores.divergence[place]),
            context=self._words.read(before),
            next_token=self._words.candidate(target, float(np.exp(-scores.reference_nll[place]))),
            next_probability=float(np.exp(-scores.tested_nll[place])),
            reference=self._words.list_candidates(ours),
            subject=self._words.list_candidates(theirs),
        )
