"""The mixture of experts: a sigmoid router whose bias selects but never weighs.

Sizes: E experts, K chosen, H hidden; any leading axes.
Source: transformers 5.24, models/lfm2_moe/modeling_lfm2_moe.py.
"""

from __future__ import annotations

from typing import cast

import torch
from torch import Tensor, nn

from lfm2_deploy.config import NORM_EPS, MoeConfig
from lfm2_deploy.model.layers import SwiGLU


class Router(nn.Module):
    """Scores every expert; always computed in float32."""

    def __init__(self, hidden: int, moe: MoeConfig) -> None:
        super().__init__()
        self.gate = nn.Linear(hidden, moe.num_experts, bias=False)
        self.expert_bias: nn.Parameter | None = None
        if moe.use_expert_bias:
            # Moved by load balancing during training, never by a gradient.
            self.expert_bias = nn.Parameter(torch.zeros(moe.num_experts), requires_grad=False)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """x [..., H] -> scores [..., E] that select, probabilities [..., E] that weigh."""
        probabilities = self.gate(x).float().sigmoid()
        if self.expert_bias is None:
            return probabilities, probabilities
        return probabilities + self.expert_bias, probabilities


class Experts(nn.ModuleList):
    """E SwiGLU experts, of which the K best scored run for each token."""

    def __init__(self, hidden: int, moe: MoeConfig) -> None:
        super().__init__(SwiGLU(hidden, moe.moe_intermediate_size) for _ in range(moe.num_experts))
        self.moe = moe

    def in_order(self) -> list[SwiGLU]:
        """The experts by number."""
        return cast("list[SwiGLU]", list(self))

    def expert(self, number: int) -> nn.Module:
        """One of them: [N, H] -> [N, H]."""
        return self[number]

    def forward(self, x: Tensor, scores: Tensor, probabilities: Tensor) -> Tensor:
        """x [..., H], scores and probabilities [..., E] -> [..., H]."""
        tokens = x.flatten(0, -2)
        chosen = scores.flatten(0, -2).topk(self.moe.num_experts_per_tok, dim=-1).indices
        weights = probabilities.flatten(0, -2).gather(-1, chosen)
        if self.moe.norm_topk_prob:
            weights = weights / (weights.sum(-1, keepdim=True) + NORM_EPS)
        weights = (weights * self.moe.routed_scaling_factor).to(x.dtype)
        y = torch.zeros_like(tokens)
        for number in range(self.moe.num_experts):
            token, slot = (chosen == number).nonzero(as_tuple=True)
            if not len(token):
                continue
            part = self.expert(number)(tokens[token]) * weights[token, slot, None]
            y.index_add_(0, token, part.to(x.dtype))
        return y.view_as(x)


class SparseMoe(nn.Module):
    """Router and experts, as a feed-forward block."""

    def __init__(self, hidden: int, moe: MoeConfig) -> None:
        super().__init__()
        self.router = Router(hidden, moe)
        self.experts = Experts(hidden, moe)

    def forward(self, x: Tensor) -> Tensor:
        """[B, S, H] -> [B, S, H]."""
        scores, probabilities = self.router(x)
        mixed: Tensor = self.experts(x, scores, probabilities)
        return mixed
