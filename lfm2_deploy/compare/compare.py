"""Run two runtimes over the same tokens and say how far apart they are."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from lfm2_deploy.compare.metrics import score_positions
from lfm2_deploy.contracts import FloatArray, Progress, Runtime, ignore_progress
from lfm2_deploy.errors import GenerationError


@dataclass(frozen=True, slots=True)
class Comparison:
    """How a tested runtime differs from a reference.

    Args:
        positions: tokens compared.
        max_error: largest difference of a logit.
        scale: largest magnitude of a reference logit.
        kld: mean KL(reference || tested), in nats.
        kld_error: its standard error.
        same_top: share of positions where both have the same likeliest token.
        reference_perplexity: of the rows' own tokens; nan where a row has only one.
        tested_perplexity: likewise.
        greedy_tokens: how many greedy tokens were compared.
        greedy_equal: how many agree before the first that differs.
        device: where the tested runtime ran.
        driver: versions of what computed there.
    """

    positions: int
    max_error: float
    scale: float
    kld: float
    kld_error: float
    same_top: float
    reference_perplexity: float
    tested_perplexity: float
    greedy_tokens: int
    greedy_equal: int
    device: str
    driver: str = ""


def compare_runtimes(
    reference: Runtime,
    tested: Runtime,
    rows: Sequence[Sequence[int]],
    greedy_tokens: int = 32,
    progress: Progress = ignore_progress,
) -> Comparison:
    """Score the rows with both, then generate greedily after the first row with both.

    Args:
        reference: the truth.
        tested: what is compared with it.
        rows: token ids, each row from an empty state.
        greedy_tokens: how many tokens to generate; fewer where the context is shorter.
        progress: told of each row.

    Raises:
        GenerationError: there are no rows, the two have different vocabularies, or one
            gives only the last position's logits.
    """
    if not rows or not all(rows):
        raise GenerationError("nothing to compare: give at least one row of tokens")
    for runtime in (reference, tested):
        if not runtime.info.capabilities.scores_all:
            raise GenerationError(f"{runtime.info.runtime} gives only the last position's logits")
    if reference.config.vocab_size != tested.config.vocab_size:
        raise GenerationError(
            f"vocabularies differ: {reference.config.vocab_size} and {tested.config.vocab_size}; "
            "compare a bundle with the checkpoint it was made from"
        )
    totals = _Totals()
    for done, row in enumerate(rows):
        progress("comparing", done, len(rows))
        totals.add(_score(reference, row), _score(tested, row), row)
    room = min(reference.context_length, tested.context_length) - len(rows[0])
    count = max(0, min(greedy_tokens, room))
    ours, theirs = (_generate(runtime, rows[0], count) for runtime in (reference, tested))
    equal = next((i for i, (a, b) in enumerate(zip(ours, theirs, strict=True)) if a != b), count)
    progress("comparing", len(rows), len(rows))
    return replace(totals.summarize(count, equal, tested.info.device), driver=tested.info.driver)


class _Totals:
    def __init__(self) -> None:
        self.kld: list[float] = []
        self.same: list[bool] = []
        self.likelihoods: tuple[list[float], list[float]] = ([], [])
        self.max_error = self.scale = 0.0

    def add(self, reference: FloatArray, tested: FloatArray, row: Sequence[int]) -> None:
        # What follows the last token is not known, so its likelihood is left out.
        scores = score_positions(reference, tested, np.array([*row[1:], 0], np.int64))
        self.kld += scores.divergence.tolist()
        self.same += scores.same_top.tolist()
        self.max_error = max(self.max_error, float(np.abs(reference - tested).max()))
        self.scale = max(self.scale, float(np.abs(reference).max()))
        both = (scores.reference_nll, scores.tested_nll)
        for total, found in zip(self.likelihoods, both, strict=True):
            total += found[:-1].tolist()

    def summarize(self, greedy_tokens: int, greedy_equal: int, device: str) -> Comparison:
        count = len(self.kld)
        perplexities = [
            math.exp(sum(part) / len(part)) if part else math.nan for part in self.likelihoods
        ]
        return Comparison(
            positions=count,
            max_error=self.max_error,
            scale=self.scale,
            kld=float(np.mean(self.kld)),
            kld_error=float(np.std(self.kld) / math.sqrt(count)),
            same_top=float(np.mean(self.same)),
            reference_perplexity=perplexities[0],
            tested_perplexity=perplexities[1],
            greedy_tokens=greedy_tokens,
            greedy_equal=greedy_equal,
            device=device,
        )


def _score(runtime: Runtime, row: Sequence[int]) -> FloatArray:
    return runtime.open(1, len(row)).score([row])[0]


def _generate(runtime: Runtime, row: Sequence[int], count: int) -> list[int]:
    session = runtime.open(1, len(row) + count)
    logits, tokens = session.prefill([row]), []
    for _ in range(count):
        tokens.append(int(logits[0].argmax()))
        logits = session.decode([tokens[-1]])
    return tokens
