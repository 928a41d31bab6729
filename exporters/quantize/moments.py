"""What calibration gathers of one matrix's inputs: two sums, and how far to trust them.

The rounded model's inputs are not those of the exact one. So a matrix is not fitted to its own
exact values, but to what gives the exact model's outputs on the inputs that it really has
(QEP, arXiv:2504.09629; GPTAQ, arXiv:2504.02692): W + M H^-1, where H is the mean of x x^T and M
of what outputs lack times x^T.

Both are estimates from a text, and a matrix with many inputs and few tokens would be fitted to
that text alone. So products of different inputs are shrunk towards 0 by as much as chance is
likely to have made of them (Schaefer and Strimmer 2005, target D), and of the correction only the
share that more tokens would be likely to show again is made (adjusted R^2).
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from exporters.quantize.gptq import damp

# What `Moments.add` takes, in pieces.
Pieces = Iterator[tuple[Tensor, Tensor, Tensor | None, Tensor | None]]


class Moments:
    """The inputs that a matrix has in the rounded model, and what its outputs lack.

    Args:
        weight: float32 [N, K], exact.
        novelty: share of the tokens that say something new, 0 to 1; others count for nothing
            where trust is estimated.
    """

    def __init__(self, weight: Tensor, novelty: float = 1.0) -> None:
        rows, columns = weight.shape
        self._weight, self._novelty = weight, novelty
        self._fourths = torch.zeros(columns)
        self._second = torch.zeros(columns, columns)
        self._missing = torch.zeros(rows, columns)
        self._lost = 0.0
        # Sums of shares to the powers 0, 2 and 4.
        self._counts = [0.0, 0.0, 0.0]

    def add(
        self,
        exact: Tensor,
        rounded: Tensor,
        shares: Tensor | None = None,
        behind: Tensor | None = None,
    ) -> None:
        """Take in some tokens.

        Args:
            exact: [T, K], inputs in the exact model.
            rounded: [T, K], the same tokens' in the model as it is rounded so far.
            shares: [T], by what the product of each is multiplied afterwards; None for 1.
            behind: [T, N], what the product should make up for besides: what the residual
                stream that it is added to has lost.
        """
        lost = (exact - rounded) @ self._weight.T
        if behind is not None:
            lost += behind
        squares = torch.ones(len(exact))
        if shares is not None:
            rounded, lost, squares = rounded * shares[:, None], lost * shares[:, None], shares**2
        self._second.addmm_(rounded.T, rounded)
        self._missing.addmm_(lost.T, rounded)
        self._fourths += rounded.square().square_().sum(0)
        self._lost += float(lost.square().sum())
        for power in range(3):
            self._counts[power] += float((squares**power).sum())

    @property
    def tokens(self) -> float:
        """How many tokens of equal shares would tell as much."""
        _, squares, fourths = self._counts
        return self._novelty * squares**2 / fourths if fourths else 0.0

    def take(self) -> tuple[Tensor, Tensor]:
        """The second moment [K, K], shrunk and damped, and the corrected weight [N, K].

        To be called once, as sums are turned into means in place.
        """
        count = max(self._counts[0], 1.0)
        second = shrink(self._second.div_(count), self.tokens)
        even_out(second.diagonal(), self._fourths.div_(count), self.tokens)
        second = damp(second)
        missing, lost = self._missing.div_(count), self._lost / count
        lower, fault = torch.linalg.cholesky_ex(second)
        if int(fault) or not lost:
            return second, self._weight
        correction = torch.cholesky_solve(missing.T, lower).T
        del lower
        explained = float((correction * missing).sum()) / lost
        trust = _adjust(explained, self.tokens, len(second))
        return second, self._weight + trust * correction


def shrink(second: Tensor, tokens: float) -> Tensor:
    """The mean of x x^T [K, K] over so many tokens, less what chance made of it, in place."""
    diagonal = second.diagonal().clone()
    squares = max(0.0, float(second.norm()) ** 2 - float(diagonal.norm()) ** 2)
    # Variance of a mean of products of normal numbers.
    chance = (float(diagonal.sum()) ** 2 - float(diagonal.square().sum()) + squares) / max(
        tokens, 1.0
    )
    part = min(1.0, chance / squares) if squares > 0 else 0.0
    second *= 1 - part
    second.diagonal().copy_(diagonal)
    return second


def even_out(sizes: Tensor, fourths: Tensor, tokens: float) -> Tensor:
    """The means of squares [K] over so many tokens, less what chance made them differ, in place.

    Args:
        sizes: means of x^2.
        fourths: means of x^4, which tell how much means of x^2 move by chance.
        tokens: over which both are means.
    """
    middle = sizes.mean()
    chance = float((fourths - sizes.square()).clamp_min(0).sum()) / max(tokens - 1, 1.0)
    spread = float((sizes - middle).square().sum())
    part = min(1.0, chance / spread) if spread > 0 else 0.0
    sizes += part * (middle - sizes)
    return sizes


def _adjust(explained: float, tokens: float, columns: int) -> float:
    """Which part of a share that a fit explains would be explained of other tokens, 0 to 1."""
    if tokens <= columns + 1 or explained <= 0:
        return 0.0
    expected = 1 - (1 - min(explained, 1.0)) * tokens / (tokens - columns)
    return max(0.0, expected / explained)
