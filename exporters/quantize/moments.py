"""What calibration gathers of one matrix's inputs, in two sums.

The rounded model's inputs are not those of the exact one. So a matrix is not fitted to its own
exact values, but to what gives the exact model's outputs on the inputs that it really has
(QEP, arXiv:2504.09629; GPTAQ, arXiv:2504.02692): W + strength * M H^-1, where H is the mean of
x x^T and M of what outputs lack times x^T.
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
    """

    def __init__(self, weight: Tensor) -> None:
        rows, columns = weight.shape
        self.weight, self.tokens = weight, 0
        self._second = torch.zeros(columns, columns)
        self._missing = torch.zeros(rows, columns)

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
        lost = (exact - rounded) @ self.weight.T
        if behind is not None:
            lost += behind
        if shares is not None:
            rounded, lost = rounded * shares[:, None], lost * shares[:, None]
        self._second.addmm_(rounded.T, rounded)
        self._missing.addmm_(lost.T, rounded)
        self.tokens += len(rounded)

    def take_second(self) -> Tensor:
        """[K, K], the mean of x x^T; to be called once, as nothing is copied."""
        return self._second.div_(max(self.tokens, 1))

    def correct(self, second: Tensor, strength: float) -> Tensor:
        """The weight that makes up for a part of what outputs lack, [N, K]."""
        if not strength:
            return self.weight
        lower, fault = torch.linalg.cholesky_ex(damp(second.clone()))
        if int(fault):
            return self.weight
        missing = self._missing.div_(max(self.tokens, 1))
        return self.weight + strength * torch.cholesky_solve(missing.T, lower).T
