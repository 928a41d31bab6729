"""Routing worked out by hand: the bias selects and never weighs."""

from __future__ import annotations

from collections.abc import Sequence

import pytest
import torch
from torch import Tensor

from lfm2_deploy.config import MoeConfig
from lfm2_deploy.model.moe import Experts, Router, SparseMoe

# float32's own rounding, a few times over.
ROUNDING = 1e-6


def make_moe(
    chosen: int = 2, *, bias: bool = True, normalize: bool = True, scaling: float = 1.0
) -> MoeConfig:
    return MoeConfig(
        num_experts=4,
        num_experts_per_tok=chosen,
        moe_intermediate_size=1,
        num_dense_layers=0,
        use_expert_bias=bias,
        norm_topk_prob=normalize,
        routed_scaling_factor=scaling,
    )


@torch.no_grad()
def make_experts(moe: MoeConfig) -> Experts:
    """Expert number e answers 10^e where x is 1, so that a sum shows who took part."""
    experts = Experts(1, moe)
    for number, expert in enumerate(experts.in_order()):
        expert.w1.weight.fill_(1)
        expert.w3.weight.fill_(1)
        expert.w2.weight.fill_(10**number / silu_of_one())
    return experts


def silu_of_one() -> float:
    return float(torch.nn.functional.silu(torch.tensor(1.0)))


@torch.no_grad()
def answer(moe: MoeConfig, scores: Sequence[float], probabilities: Sequence[float]) -> float:
    """What the experts make of one token of 1."""
    token = torch.ones(1, 1)
    return float(make_experts(moe)(token, torch.tensor([scores]), torch.tensor([probabilities])))


def logit(probability: float) -> float:
    return float(torch.logit(torch.tensor(probability, dtype=torch.float64)))


@torch.no_grad()
def make_router(probabilities: Sequence[float], bias: Sequence[float]) -> Router:
    """A router that gives a token of 1 these probabilities."""
    router = Router(1, make_moe())
    router.gate.weight.copy_(torch.tensor([[logit(p)] for p in probabilities]))
    assert router.expert_bias is not None
    router.expert_bias.copy_(torch.tensor(bias))
    return router


@torch.no_grad()
def test_router_adds_its_bias_to_scores_and_not_to_probabilities() -> None:
    router = make_router([0.8, 0.5, 0.25, 0.1], bias=[-0.5, 0.0, 0.25, 1.0])
    scores, probabilities = router(torch.ones(1, 1))
    torch.testing.assert_close(probabilities, torch.tensor([[0.8, 0.5, 0.25, 0.1]]))
    torch.testing.assert_close(scores, torch.tensor([[0.3, 0.5, 0.5, 1.1]]))


@torch.no_grad()
def test_router_without_bias_scores_by_probability() -> None:
    router = Router(1, make_moe(bias=False))
    router.gate.weight.copy_(torch.tensor([[0.0], [1.0], [-1.0], [2.0]]))
    scores, probabilities = router(torch.ones(1, 1))
    assert "expert_bias" not in dict(router.named_parameters())
    assert torch.equal(scores, probabilities)
    # sigmoid(0), sigmoid(1) and so on.
    expected = torch.tensor([[0.5, 0.7310586, 0.2689414, 0.8807970]])
    torch.testing.assert_close(probabilities, expected, atol=ROUNDING, rtol=0)


@torch.no_grad()
def test_router_of_a_half_precision_model_scores_in_float32() -> None:
    router = Router(1, make_moe()).to(torch.bfloat16)
    router.gate.weight.copy_(torch.tensor([[1.0], [2.0], [3.0], [4.0]]))
    scores, probabilities = router(torch.ones(1, 1, dtype=torch.bfloat16))
    assert scores.dtype == probabilities.dtype == torch.float32
    # bfloat16 has 8 bits, and would round sigmoid(4) = 0.98201 to 0.98047.
    assert float(probabilities[0, 3]) == pytest.approx(0.9820138, abs=ROUNDING)


def test_bias_selects_and_probabilities_weigh() -> None:
    # Scores choose experts 2 and 3, of the smallest probabilities.
    got = answer(make_moe(), scores=[0.3, 0.5, 1.0, 1.1], probabilities=[0.8, 0.5, 0.3, 0.1])
    # 0.3 / 0.4 of 100 and 0.1 / 0.4 of 1000; the 1e-6 in the divisor is a relative 2.5e-6.
    assert got == pytest.approx((75 + 250) / (1 + 2.5e-6), rel=ROUNDING)


def test_weights_that_are_not_normalized_are_the_probabilities() -> None:
    moe = make_moe(normalize=False)
    got = answer(moe, scores=[0.3, 0.5, 1.0, 1.1], probabilities=[0.8, 0.5, 0.3, 0.1])
    assert got == pytest.approx(0.3 * 100 + 0.1 * 1000, rel=ROUNDING)


@pytest.mark.parametrize("normalize", [True, False])
def test_scaling_multiplies_the_answer(normalize: bool) -> None:
    scores, probabilities = [1.1, 1.0, 0.5, 0.3], [0.1, 0.3, 0.5, 0.8]
    plain = answer(make_moe(normalize=normalize), scores, probabilities)
    scaled = answer(make_moe(normalize=normalize, scaling=2.5), scores, probabilities)
    assert scaled == pytest.approx(2.5 * plain, rel=ROUNDING)


def test_tiny_probabilities_are_damped_by_the_epsilon() -> None:
    tiny = [1e-6, 1e-6, 0.0, 0.0]
    # Each weighs 1e-6 / (2e-6 + 1e-6), a third, rather than a half.
    assert answer(make_moe(), tiny, tiny) == pytest.approx(11 / 3, rel=ROUNDING)


@pytest.mark.parametrize(("chosen", "expected"), [(1, 1000), (2, 1100), (3, 1110), (4, 1111)])
def test_as_many_experts_run_as_are_to_be_chosen(chosen: int, expected: int) -> None:
    moe = make_moe(chosen, normalize=False)
    got = answer(moe, scores=[0.1, 0.2, 0.3, 0.4], probabilities=[1.0] * 4)
    assert got == pytest.approx(expected, rel=ROUNDING)


@torch.no_grad()
def test_each_token_is_routed_on_its_own() -> None:
    moe = make_moe(1, normalize=False)
    scores = torch.eye(4).view(2, 2, 4)
    got: Tensor = make_experts(moe)(torch.ones(2, 2, 1), scores, torch.ones(2, 2, 4))
    torch.testing.assert_close(got, torch.tensor([[[1.0], [10.0]], [[100.0], [1000.0]]]))


@torch.no_grad()
def test_experts_that_are_not_chosen_do_not_run() -> None:
    experts = make_experts(make_moe(1, normalize=False))
    for number in (0, 1, 3):
        experts.in_order()[number].w2.weight.fill_(torch.nan)
    scores = torch.tensor([[0.0, 0.0, 1.0, 0.0]])
    assert float(experts(torch.ones(1, 1), scores, torch.ones(1, 4))) == pytest.approx(100)


@torch.no_grad()
def test_block_routes_by_its_own_router() -> None:
    block = SparseMoe(1, make_moe())
    block.router = make_router([0.8, 0.5, 0.3, 0.1], bias=[-0.6, -0.6, 0.0, 0.5])
    block.experts = make_experts(make_moe())
    # Scores 0.2, -0.1, 0.3, 0.6: as in the first case, experts 2 and 3.
    expected = torch.full((2, 3, 1), 325 / (1 + 2.5e-6))
    torch.testing.assert_close(block(torch.ones(2, 3, 1)), expected, rtol=1e-5, atol=0)
