"""Scores of every position -> means, errors and percentiles."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from lfm2_deploy.compare.metrics import DoubleArray, PositionScores, join_scores
from lfm2_deploy.compare.result import PERCENTS, Divergence, Estimate, Scores


def estimate(windows: Sequence[DoubleArray]) -> Estimate:
    """A mean over all positions, and its standard error over windows.

    Positions of one window depend on each other, so each window is one sample. With one window
    alone, each of its positions is.

    Args:
        windows: values of each window, all of one length.
    """
    means = np.array([float(np.mean(window)) for window in windows])
    samples = means if len(means) > 1 else np.asarray(windows[0], np.float64)
    return Estimate(float(means.mean()), standard_error(samples))


def standard_error(samples: DoubleArray) -> float:
    """Of the mean of independent samples; nan of a single one."""
    if len(samples) < 2:
        return math.nan
    return float(np.std(samples, ddof=1) / math.sqrt(len(samples)))


def estimate_perplexity(likelihoods: Sequence[DoubleArray]) -> Estimate:
    """exp of the mean of -log p, with the error that the mean's brings."""
    mean = estimate(likelihoods)
    value = _exp(mean.value)
    return Estimate(value, value * mean.error)


def summarize(windows: Sequence[PositionScores]) -> Scores:
    """Scores of a subject.

    Args:
        windows: of each window, in order; all of one length.
    """
    ratios = [w.tested_nll - w.reference_nll for w in windows]
    every = join_scores(list(windows))
    return Scores(
        divergence=_summarize_divergence(windows),
        same_top=estimate([w.same_top.astype(np.float64) for w in windows]),
        top5_overlap=estimate([w.overlap for w in windows]),
        perplexity=estimate_perplexity([w.tested_nll for w in windows]),
        perplexity_ratio=estimate_perplexity(ratios),
        probability_rms=float(np.sqrt(np.mean(every.probability_change**2))),
    )


def _summarize_divergence(windows: Sequence[PositionScores]) -> Divergence:
    table = np.stack([window.divergence for window in windows])
    every = table.ravel()
    median, p99, p999 = (float(np.percentile(every, at)) for at in (50, 99, 99.9))
    percentiles = np.percentile(every, np.linspace(0, 100, PERCENTS + 1))
    return Divergence(
        mean=estimate(list(table)),
        error_by_position=standard_error(every),
        median=median,
        p99=p99,
        p999=p999,
        most=float(every.max()),
        percentiles=tuple(percentiles.tolist()),
        by_window=tuple(table.mean(1).tolist()),
        by_position=tuple(table.mean(0).tolist()),
    )


def _exp(value: float) -> float:
    return math.exp(value) if value < 700 else math.inf
