"""Two sets of logits -> how far apart they are. Pure numpy."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from lfm2_deploy.contracts import FloatArray

DoubleArray = NDArray[np.float64]


def log_softmax(logits: FloatArray) -> DoubleArray:
    """float32 [..., V] -> float64 log-probabilities [..., V]."""
    wide = logits.astype(np.float64)
    wide -= wide.max(-1, keepdims=True)
    result: DoubleArray = wide - np.log(np.exp(wide).sum(-1, keepdims=True))
    return result


def kl_divergence(reference: FloatArray, tested: FloatArray) -> DoubleArray:
    """KL(reference || tested) at each position, in nats.

    Args:
        reference: logits float32 [N, V].
        tested: logits float32 [N, V].

    Returns:
        float64 [N].
    """
    p, q = log_softmax(reference), log_softmax(tested)
    divergence: DoubleArray = (np.exp(p) * (p - q)).sum(-1)
    return divergence


def negative_log_likelihood(logits: FloatArray, targets: NDArray[np.int64]) -> DoubleArray:
    """-log p(target) at each position: logits [N, V], targets [N] -> float64 [N]."""
    chosen = np.take_along_axis(log_softmax(logits), targets[:, None], axis=-1)
    likelihood: DoubleArray = -chosen[:, 0]
    return likelihood
