"""The building blocks against numbers worked out by hand, and rows of unequal length."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace

import pytest
import torch
from torch import Tensor

from lfm2_deploy.config import Lfm2Config, parse_config
from lfm2_deploy.model.layers import (
    Attention,
    CachedAttention,
    CausalConv,
    RMSNorm,
    ShortConv,
    SwiGLU,
    apply_rope,
    rotate_half,
)

# float32's own rounding of sums of numbers up to 10, a few times over.
ROUNDING = 1e-5


def make_config(
    hidden: int = 4, heads: int = 1, kv_heads: int = 1, conv_width: int = 3, theta: float = 1e4
) -> Lfm2Config:
    return parse_config(
        {
            "model_type": "lfm2",
            "vocab_size": 8,
            "hidden_size": hidden,
            "num_hidden_layers": 1,
            "layer_types": ["conv"],
            "num_attention_heads": heads,
            "num_key_value_heads": kv_heads,
            "intermediate_size": 8,
            "block_auto_adjust_ff_dim": False,
            "conv_L_cache": conv_width,
            "norm_eps": 1e-5,
            "rope_theta": theta,
            "max_position_embeddings": 64,
            "tie_word_embeddings": True,
            "eos_token_id": 7,
        }
    )


def close(actual: Tensor, expected: Tensor | Sequence[object]) -> None:
    torch.testing.assert_close(actual, torch.as_tensor(expected), atol=ROUNDING, rtol=ROUNDING)


def lengths(*values: int) -> Tensor:
    return torch.tensor(values)


@pytest.fixture(autouse=True)
def no_gradients() -> object:
    with torch.no_grad():
        torch.manual_seed(0)
        yield


# RMSNorm


def test_norm_divides_by_the_root_of_the_mean_square() -> None:
    norm = RMSNorm(2, eps=0.0)
    norm.weight.copy_(torch.tensor([1.0, -2.0]))
    # Mean of 9 and 16 is 12.5; of the second row, 3.
    close(norm(torch.tensor([[3.0, 4.0], [0.0, 6.0]])), [[0.8485281, -2.2627417], [0, -2.8284271]])


def test_norm_adds_epsilon_to_the_mean_square() -> None:
    # Mean square 1, epsilon 3.
    close(RMSNorm(2, eps=3.0)(torch.ones(1, 2)), [[0.5, 0.5]])


def test_norm_of_halves_is_computed_in_float32() -> None:
    # 300^2 is more than float16 can hold.
    got = RMSNorm(2, eps=0.0).half()(torch.tensor([[300.0, 300.0]], dtype=torch.float16))
    assert got.dtype == torch.float16
    assert got.tolist() == [[1.0, 1.0]]


# Convolution


def make_conv() -> CausalConv:
    conv = CausalConv(1, 3)
    conv.weight.copy_(torch.tensor([[[100.0, 10.0, 1.0]]]))
    return conv


def test_conv_weighs_the_oldest_column_first() -> None:
    x, past = torch.tensor([[[1.0], [2.0], [3.0]]]), torch.tensor([[[4.0, 5.0]]])
    y, present = make_conv()(x, past, lengths(3))
    # Columns 4 5 1, then 5 1 2, then 1 2 3.
    assert y.flatten().tolist() == [451.0, 512.0, 123.0]
    assert present.tolist() == [[[2.0, 3.0]]]


def test_conv_from_an_empty_state_sees_zeros_before_the_first_token() -> None:
    y, present = make_conv()(torch.tensor([[[7.0]]]), torch.zeros(1, 1, 2), lengths(1))
    assert y.tolist() == [[[7.0]]]
    assert present.tolist() == [[[0.0, 7.0]]]


@pytest.mark.parametrize(
    ("count", "expected"), [(0, [8.0, 9.0]), (1, [9.0, 1.0]), (2, [1.0, 2.0]), (3, [2.0, 3.0])]
)
def test_conv_state_ends_at_the_last_real_column(count: int, expected: list[float]) -> None:
    x = torch.tensor([[[1.0], [2.0], [3.0]]])
    _, present = make_conv()(x, torch.tensor([[[8.0, 9.0]]]), lengths(count))
    assert present.flatten().tolist() == expected


def test_conv_rows_of_unequal_length_keep_their_own_states() -> None:
    conv, counts = CausalConv(4, 4), [5, 2, 0, 1]
    conv.weight.normal_()
    x, past = torch.randn(4, 5, 4), torch.randn(4, 4, 3)
    y, present = conv(x, past, lengths(*counts))
    for row, count in enumerate(counts):
        alone = slice(row, row + 1)
        if count == 0:
            assert torch.equal(present[row], past[row])
            continue
        y_alone, present_alone = conv(x[alone, :count], past[alone], lengths(count))
        close(y[alone, :count], y_alone)
        assert torch.equal(present[alone], present_alone)


def test_conv_step_by_step_equals_one_call() -> None:
    conv = CausalConv(4, 4)
    conv.weight.normal_()
    x, state = torch.randn(1, 6, 4), torch.zeros(1, 4, 3)
    whole, present = conv(x, state, lengths(6))
    for step in range(6):
        y, state = conv(x[:, step : step + 1], state, lengths(1))
        close(y, whole[:, step : step + 1])
    assert torch.equal(state, present)


def test_short_conv_gates_in_conv_and_out_in_that_order() -> None:
    block = ShortConv(replace(make_config(), hidden_size=1))
    # B, C and x of a token of 1.
    block.in_proj.weight.copy_(torch.tensor([[2.0], [3.0], [5.0]]))
    block.conv.weight.copy_(torch.tensor([[[100.0, 10.0, 1.0]]]))
    block.out_proj.weight.fill_(7.0)
    past = torch.tensor([[[0.0, 4.0]]])
    y, present = block(torch.ones(1, 1, 1), past, lengths(1))
    # B*x is 10 and goes into the state; 7 * C * (10 * 4 + 1 * 10).
    assert y.tolist() == [[[7.0 * 3 * 50]]]
    assert present.tolist() == [[[4.0, 10.0]]]


# Rotary positions


def test_rotate_half_swaps_halves_and_negates_the_first() -> None:
    assert rotate_half(torch.tensor([1.0, 2.0, 3.0, 4.0])).tolist() == [-3.0, -4.0, 1.0, 2.0]


def test_rope_turns_each_pair_by_its_own_angle() -> None:
    # Pairs are one of each half; frequencies 1 and 10000^(-1/2) = 0.01. Position 2.
    x = torch.tensor([[[[1.0, 0.0, 0.0, 1.0]]]])
    got = apply_rope(x, torch.tensor([[2]]), theta=1e4)
    expected = [math.cos(2), -math.sin(0.02), math.sin(2), math.cos(0.02)]
    close(got.flatten(), expected)


def test_rope_leaves_the_first_position_alone() -> None:
    x = torch.randn(2, 3, 1, 8)
    assert torch.equal(apply_rope(x, torch.zeros(2, 1, dtype=torch.int64), theta=1e4), x)


def test_rope_products_depend_on_distance_only() -> None:
    q, k = torch.randn(2, 1, 1, 1, 8)

    def product(q_position: int, k_position: int) -> Tensor:
        turned_q = apply_rope(q, torch.tensor([[q_position]]), theta=1e4)
        return (turned_q * apply_rope(k, torch.tensor([[k_position]]), theta=1e4)).sum()

    close(product(5, 2), product(13, 10))
    assert not torch.isclose(product(5, 2), product(5, 3))


# Attention


def attend(
    core: CachedAttention, q: Tensor, k: Tensor, v: Tensor, capacity: int = 8
) -> tuple[Tensor, Tensor, Tensor]:
    """Attention of whole rows from an empty buffer."""
    batch, steps = q.shape[:2]
    empty = torch.zeros(batch, core.kv_heads, capacity, core.head_dim)
    full = torch.full((batch,), steps)
    result: tuple[Tensor, Tensor, Tensor] = core(q, k, v, empty, empty, 0 * full, full)
    return result


def test_attention_of_a_query_of_zeros_is_the_mean_of_what_it_may_see() -> None:
    core = CachedAttention(make_config())
    values = torch.tensor([1.0, 3.0, 8.0])[None, :, None].expand(1, 3, 4)
    y, _, _ = attend(core, torch.zeros(1, 3, 4), torch.randn(1, 3, 4), values)
    close(y[0, :, 0], [1.0, 2.0, 4.0])


def test_attention_scores_are_products_over_the_root_of_the_head_size() -> None:
    # So slow a rotation leaves the second and fourth number of a head where they are.
    core = CachedAttention(make_config(theta=1e30))
    q = torch.tensor([[[0.0, 5.0, 0.0, 0.0]] * 2])
    k = torch.tensor([[[0.0, 3.0, 0.0, 0.0], [0.0, -3.0, 0.0, 0.0]]])
    v = torch.tensor([[[1.0] * 4, [0.0] * 4]])
    y, present, _ = attend(core, q, k, v)
    # Normalized, all have length 2: products 4 and -4, over 2; softmax(2, -2).
    # The norms' epsilon of 1e-5 is a relative 2e-6 of lengths.
    assert float(y[0, 1, 0]) == pytest.approx(1 / (1 + math.exp(-4)), abs=ROUNDING)
    assert present[0, 0, :2, 1].tolist() == pytest.approx([2.0, -2.0], abs=ROUNDING)


def test_attention_norms_weigh_queries_and_keys() -> None:
    core = CachedAttention(make_config(theta=1e30))
    core.q_layernorm.weight.fill_(0.5)
    core.k_layernorm.weight.fill_(3.0)
    q = torch.tensor([[[0.0, 5.0, 0.0, 0.0]] * 2])
    k = torch.tensor([[[0.0, 3.0, 0.0, 0.0], [0.0, -3.0, 0.0, 0.0]]])
    v = torch.tensor([[[1.0] * 4, [0.0] * 4]])
    y, _, _ = attend(core, q, k, v)
    # As above, 1.5 times as sharp: softmax(3, -3).
    assert float(y[0, 1, 0]) == pytest.approx(1 / (1 + math.exp(-6)), abs=ROUNDING)


def test_query_heads_share_key_heads_in_order() -> None:
    core = CachedAttention(make_config(hidden=16, heads=4, kv_heads=2))
    v = torch.tensor([[[1.0] * 4 + [2.0] * 4]])
    y, _, _ = attend(core, torch.randn(1, 1, 16), torch.randn(1, 1, 8), v)
    close(y.view(4, 4)[:, 0], [1.0, 1.0, 2.0, 2.0])


def test_attention_caches_keys_after_their_rotation_and_values_as_they_are() -> None:
    core = CachedAttention(make_config(hidden=8))
    k, v = torch.randn(1, 3, 8), torch.randn(1, 3, 8)
    _, keys, values = attend(core, torch.randn(1, 3, 8), k, v)
    normed = core.k_layernorm(k)[:, None]
    close(keys[:, :, :3], apply_rope(normed, torch.arange(3)[None], theta=1e4))
    assert torch.equal(values[0, 0, :3], v[0])
    assert not keys[:, :, 3:].any()
    assert not values[:, :, 3:].any()


def test_attention_reads_nothing_past_a_rows_length() -> None:
    core = CachedAttention(make_config(hidden=8))
    q, k, v = torch.randn(3, 1, 1, 8)
    clean = torch.randn(2, 1, 1, 6, 8)
    dirty = clean.clone()
    dirty[..., 3:, :] = 1e6
    calls = [core(q, k, v, *past, lengths(2), lengths(1)) for past in (clean, dirty)]
    assert torch.equal(calls[0][0], calls[1][0])


def make_attention() -> Attention:
    block = Attention(make_config(hidden=16, heads=4, kv_heads=2))
    for parameter in block.parameters():
        parameter.normal_(std=0.25)
    return block


def test_attention_rows_of_unequal_length_equal_single_rows() -> None:
    block, held, counts = make_attention(), [0, 3, 1, 4], [4, 1, 0, 2]
    x, past = torch.randn(4, 4, 16), torch.randn(2, 4, 2, 9, 4)
    y, *present = block(x, *past, lengths(*held), lengths(*counts))
    for row, count in enumerate(counts):
        alone, used = slice(row, row + 1), held[row] + count
        for before, after in zip(past, present, strict=True):
            # Padding and what lies beyond are never written.
            assert torch.equal(after[row, :, : held[row]], before[row, :, : held[row]])
            assert torch.equal(after[row, :, used:], before[row, :, used:])
        if count:
            own = [state[alone] for state in past]
            y_alone, *present_alone = block(
                x[alone, :count], *own, lengths(held[row]), lengths(count)
            )
            close(y[alone, :count], y_alone)
            for together, apart in zip(present, present_alone, strict=True):
                close(together[alone], apart)


def test_attention_step_by_step_equals_one_call() -> None:
    block, x = make_attention(), torch.randn(1, 6, 16)
    states = list(torch.zeros(2, 1, 2, 6, 4))
    whole, *present = block(x, *states, lengths(0), lengths(6))
    for step in range(6):
        y, *states = block(x[:, step : step + 1], *states, lengths(step), lengths(1))
        close(y, whole[:, step : step + 1])
    for stepped, at_once in zip(states, present, strict=True):
        close(stepped, at_once)


# Feed-forward


def test_swiglu_gates_by_w1_and_multiplies_by_w3() -> None:
    block = SwiGLU(1, 2)
    block.w1.weight.copy_(torch.tensor([[1.0], [-1.0]]))
    block.w3.weight.copy_(torch.tensor([[10.0], [100.0]]))
    block.w2.weight.copy_(torch.tensor([[1.0, 2.0]]))
    # silu(2) = 1.7615942, silu(-2) = -0.2384058.
    close(block(torch.tensor([[2.0]])), [[1.7615942 * 20 - 2 * 0.2384058 * 200]])
