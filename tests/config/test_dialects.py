"""config.json: every dialect of the family says the same."""

from __future__ import annotations

import pytest

from lfm2_deploy.config import Lfm2Config, MoeConfig, parse_config

from .dialects import MOE, NEW, OLD, without


def test_new_dialect_gives_every_field() -> None:
    assert parse_config(NEW) == Lfm2Config(
        model_type="lfm2",
        vocab_size=1000,
        hidden_size=256,
        num_hidden_layers=4,
        layer_types=("conv", "full_attention", "conv", "full_attention"),
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=64,
        intermediate_size=4608,
        conv_L_cache=3,
        norm_eps=1e-5,
        rope_theta=1000000.0,
        max_position_embeddings=2048,
        tie_word_embeddings=True,
        bos_token_id=1,
        eos_token_ids=(7,),
        pad_token_id=0,
        moe=None,
    )


def test_old_dialect_gives_the_same_config_as_the_new() -> None:
    assert parse_config(OLD) == parse_config(NEW)


def test_both_dialects_at_once_agree() -> None:
    both = {**NEW, **OLD, "layer_types": NEW["layer_types"], "tie_word_embeddings": True}
    assert parse_config(both) == parse_config(NEW)


def test_moe_config_gives_its_experts() -> None:
    config = parse_config(MOE)
    assert config.moe == MoeConfig(
        num_experts=8,
        num_experts_per_tok=4,
        moe_intermediate_size=96,
        num_dense_layers=2,
        use_expert_bias=True,
        norm_topk_prob=True,
        routed_scaling_factor=1.5,
    )
    assert [config.is_moe_layer(layer) for layer in range(4)] == [False, False, True, True]


def test_dense_config_has_no_moe_layer() -> None:
    config = parse_config(NEW)
    assert not any(config.is_moe_layer(layer) for layer in range(4))


def test_moe_with_every_layer_dense_is_accepted() -> None:
    config = parse_config({**MOE, "num_dense_layers": 4})
    assert not config.is_moe_layer(3)


def test_layers_are_listed_by_kind() -> None:
    config = parse_config(NEW)
    assert config.attention_layers == (1, 3)
    assert config.conv_layers == (0, 2)


def test_empty_full_attn_idxs_makes_every_layer_a_conv() -> None:
    config = parse_config({**OLD, "full_attn_idxs": []})
    assert config.layer_types == ("conv",) * 4


def test_conv_width_sets_the_state_width() -> None:
    assert parse_config({**NEW, "conv_L_cache": 5}).conv_state_width == 4


@pytest.mark.parametrize("key", ["tie_embedding", "tie_word_embeddings"])
@pytest.mark.parametrize("tied", [True, False])
def test_tying_is_read_under_either_name(key: str, tied: bool) -> None:
    raw = without(NEW, "tie_word_embeddings") | {key: tied}
    assert parse_config(raw).tie_word_embeddings is tied


def test_absent_tying_is_assumed_and_recorded() -> None:
    config = parse_config(without(NEW, "tie_word_embeddings"))
    assert config.tie_word_embeddings is True
    assert len(config.assumptions) == 1
    assert "tie_word_embeddings = true" in config.assumptions[0]


def test_complete_config_records_no_assumption() -> None:
    assert parse_config(OLD).assumptions == ()


def test_head_dim_overrides_the_quotient() -> None:
    assert parse_config({**NEW, "head_dim": 32}).head_dim == 32


def test_eos_list_is_kept_in_order() -> None:
    assert parse_config({**NEW, "eos_token_id": [7, 2]}).eos_token_ids == (7, 2)


@pytest.mark.parametrize("key", ["bos_token_id", "pad_token_id"])
@pytest.mark.parametrize("present", [True, False])
def test_null_or_absent_optional_id_is_none(key: str, present: bool) -> None:
    raw = {**NEW, key: None} if present else without(NEW, key)
    assert getattr(parse_config(raw), key) is None


@pytest.mark.parametrize(
    ("given", "used"),
    [
        (6656, 4608),  # 2/3: 4437; 18 * 256
        (12288, 8192),  # 2/3: 8192; 32 * 256 exactly
        (10240, 6912),  # 2/3: 6826; 27 * 256
    ],
)
def test_dense_width_is_adjusted_by_the_family_rule(given: int, used: int) -> None:
    assert parse_config({**OLD, "block_ff_dim": given}).intermediate_size == used


def test_multiplier_applies_after_two_thirds_and_before_rounding_up() -> None:
    # 2/3 of 1000: 666; 1.5 * 666 = 999; 10 * 100.
    changes = {"block_ff_dim": 1000, "block_ffn_dim_multiplier": 1.5, "block_multiple_of": 100}
    assert parse_config({**OLD, **changes}).intermediate_size == 1000


def test_dense_width_without_adjustment_is_as_given() -> None:
    raw = {**OLD, "block_auto_adjust_ff_dim": False}
    assert parse_config(raw).intermediate_size == 6656


def test_intermediate_size_is_adjusted_where_block_ff_dim_is_absent() -> None:
    raw = without(OLD, "block_ff_dim") | {"intermediate_size": 6656}
    assert parse_config(raw).intermediate_size == 4608


def test_block_ff_dim_overrides_intermediate_size() -> None:
    raw = {**NEW, "intermediate_size": 999, "block_ff_dim": 512}
    assert parse_config(raw).intermediate_size == 512


def test_moe_width_is_never_adjusted() -> None:
    adjusting = {
        "intermediate_size": 7168,
        "block_ff_dim": 6656,
        "block_auto_adjust_ff_dim": True,
        "block_ffn_dim_multiplier": 1.0,
        "block_multiple_of": 256,
    }
    assert parse_config({**MOE, **adjusting}).intermediate_size == 7168
