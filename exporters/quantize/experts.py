"""A layer's experts, one after another, each on the tokens that chose it.

Routing is the rounded model's own, so each expert sees what it will see. An expert that few
tokens chose is rare: it is calibrated also on those that came closest to choosing it.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import dataclass
from statistics import median

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from exporters.quantize.moments import Pieces
from exporters.quantize.twin import TOKENS_AT_ONCE, Twin
from lfm2_deploy.config import NORM_EPS
from lfm2_deploy.model.decoder import DecoderLayer
from lfm2_deploy.model.layers import SwiGLU
from lfm2_deploy.model.moe import Experts, SparseMoe

# An expert chosen by fewer tokens is rare.
RARE_BELOW = 256

# (name without the expert's prefix, exact, rounded, inputs): rounds some matrices in place.
Fit = Callable[[str, tuple[str, ...], SwiGLU, SwiGLU, Callable[[], Pieces]], None]


@dataclass(frozen=True, slots=True)
class Routing:
    """Which experts tokens choose.

    Args:
        chosen: int64 [T, K].
        weights: float32 [T, K], of each among the chosen.
        scores: float32 [T, E], by which they are chosen.
        shares: float32 [T, E], the weight each would have.
    """

    chosen: Tensor
    weights: Tensor
    scores: Tensor
    shares: Tensor

    def find(self, expert: int) -> tuple[Tensor, Tensor]:
        """Tokens [n] that chose an expert, and its weights [n]."""
        token, slot = (self.chosen == expert).nonzero(as_tuple=True)
        return token, self.weights[token, slot]

    def find_more(self, expert: int, wanted: int) -> tuple[Tensor, Tensor]:
        """As `find`, with the tokens that come next until there are `wanted`."""
        token, weights = self.find(expert)
        missing = min(wanted, len(self.scores)) - len(token)
        if missing <= 0:
            return token, weights
        scores = self.scores[:, expert].clone()
        scores[token] = -torch.inf
        others = scores.topk(missing).indices
        joined = torch.cat([token, others])
        return joined, torch.cat([weights, self.shares[others, expert]])


@dataclass(frozen=True, slots=True)
class Counts:
    """Tokens of a layer's experts: the fewest, the median, and how many experts were rare."""

    fewest: int = 0
    middle: int = 0
    rare: int = 0


@torch.inference_mode()
def round_experts(twin: Twin, fit: Fit) -> Counts:
    """Round each expert of a layer, and run the mixture in both models.

    Args:
        twin: the layer; its hidden states become those after it.
        fit: rounds matrices.
    """
    exact, rounded = (z.view(-1, z.shape[-1]) for z in (twin.x, twin.y))
    routes = route(twin.exact, exact), route(twin.rounded, rounded)
    gains = torch.zeros_like(exact), torch.zeros_like(rounded)
    feed = twin.exact.feed_forward
    assert isinstance(feed, SparseMoe)
    counts = []
    for number in range(feed.experts.moe.num_experts):
        pair = _read_twice(feed.experts, number)
        counts.append(len(routes[1].find(number)[0]))
        tokens, weights = routes[1].find_more(number, RARE_BELOW)
        states = _States(twin, exact, rounded, tokens, weights)
        prefix = f"experts.{number}"
        fit(prefix, ("w1", "w3"), *pair, states.outer)
        fit(prefix, ("w2",), *pair, functools.partial(states.inner, *pair))
        for expert, layer, x, routing, gain in zip(
            pair, (twin.exact, twin.rounded), (exact, rounded), routes, gains, strict=True
        ):
            _run(expert, layer, x, *routing.find(number), gain)
    exact += gains[0]
    rounded += gains[1]
    return Counts(min(counts), int(median(counts)), sum(count < RARE_BELOW for count in counts))


def route(layer: DecoderLayer, x: Tensor) -> Routing:
    """Of hidden states [T, H]."""
    feed = layer.feed_forward
    assert isinstance(feed, SparseMoe)
    moe, pieces = feed.experts.moe, []
    for part in torch.split(x, TOKENS_AT_ONCE):
        scores, probabilities = feed.router(layer.ffn_norm(part))
        chosen = scores.topk(moe.num_experts_per_tok, dim=-1).indices
        weights, total = probabilities.gather(-1, chosen), torch.ones(len(part), 1)
        if moe.norm_topk_prob:
            total = weights.sum(-1, keepdim=True) + NORM_EPS
        factor = moe.routed_scaling_factor
        pieces.append((chosen, weights / total * factor, scores, probabilities / total * factor))
    return Routing(*(torch.cat(kind) for kind in zip(*pieces, strict=True)))


@dataclass(frozen=True, slots=True)
class _States:
    """What an expert is called with, in both models."""

    twin: Twin
    exact: Tensor
    rounded: Tensor
    tokens: Tensor
    weights: Tensor

    def outer(self) -> Pieces:
        """Pieces of w1 and w3."""
        twin = self.twin
        pieces = (torch.split(z, TOKENS_AT_ONCE) for z in (self.tokens, self.weights))
        for token, weight in zip(*pieces, strict=True):
            x = twin.exact.ffn_norm(self.exact[token])
            y = twin.rounded.ffn_norm(self.rounded[token])
            yield x, y, weight, None

    def inner(self, exact: SwiGLU, rounded: SwiGLU) -> Pieces:
        """Pieces of w2."""
        for x, y, weight, _ in self.outer():
            yield activate(exact, x), activate(rounded, y), weight, None


def activate(expert: SwiGLU, x: Tensor) -> Tensor:
    """Inputs of w2, [T, I]."""
    return F.silu(expert.w1(x)).mul_(expert.w3(x))


def _read_twice(experts: Experts, number: int) -> tuple[SwiGLU, SwiGLU]:
    exact = experts.expert(number)
    exact = getattr(exact, "inner", exact)
    assert isinstance(exact, SwiGLU)
    with torch.device("meta"):
        other = SwiGLU(exact.w1.in_features, exact.w1.out_features)
    other.load_state_dict(exact.state_dict(), assign=True)
    return exact, other


def _run(
    expert: SwiGLU, layer: DecoderLayer, x: Tensor, tokens: Tensor, weights: Tensor, gain: Tensor
) -> None:
    """Add what an expert gives to those that chose it, in place."""
    pieces = (torch.split(z, TOKENS_AT_ONCE) for z in (tokens, weights))
    for token, weight in zip(*pieces, strict=True):
        gain.index_add_(0, token, expert(layer.ffn_norm(x[token])) * weight[:, None])


def replace(linear: nn.Module, weight: Tensor) -> None:
    """Give a projection another weight."""
    assert isinstance(linear, nn.Linear)
    linear.weight = nn.Parameter(weight, requires_grad=False)
