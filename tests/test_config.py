"""config.json: every dialect of the family, and every way a file can be unusable."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from lfm2_deploy.config import Lfm2Config, MoeConfig, parse_config, read_config
from lfm2_deploy.errors import ConfigError, UnsupportedModelError

Raw = dict[str, Any]

# The dialect of the first LFM2 releases.
OLD: Mapping[str, Any] = {
    "architectures": ["Lfm2ForCausalLM"],
    "model_type": "lfm2",
    "vocab_size": 1000,
    "hidden_size": 256,
    "block_dim": 256,
    "conv_dim": 256,
    "conv_dim_out": 256,
    "num_hidden_layers": 4,
    "full_attn_idxs": [1, 3],
    "num_attention_heads": 4,
    "num_heads": 4,
    "num_key_value_heads": 2,
    "block_ff_dim": 6656,
    "block_auto_adjust_ff_dim": True,
    "block_ffn_dim_multiplier": 1.0,
    "block_multiple_of": 256,
    "block_use_swiglu": True,
    "use_pos_enc": True,
    "conv_L_cache": 3,
    "conv_bias": False,
    "norm_eps": 1e-5,
    "block_norm_eps": 1e-5,
    "rope_theta": 1000000.0,
    "max_position_embeddings": 2048,
    "tie_embedding": True,
    "bos_token_id": 1,
    "eos_token_id": 7,
    "pad_token_id": 0,
}
# The same model as transformers 5 writes it.
NEW: Mapping[str, Any] = {
    "architectures": ["Lfm2ForCausalLM"],
    "model_type": "lfm2",
    "vocab_size": 1000,
    "hidden_size": 256,
    "num_hidden_layers": 4,
    "layer_types": ["conv", "full_attention", "conv", "full_attention"],
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "intermediate_size": 4608,
    "block_auto_adjust_ff_dim": False,
    "conv_L_cache": 3,
    "conv_bias": False,
    "norm_eps": 1e-5,
    "rope_parameters": {"rope_theta": 1000000.0, "rope_type": "default"},
    "max_position_embeddings": 2048,
    "tie_word_embeddings": True,
    "bos_token_id": 1,
    "eos_token_id": 7,
    "pad_token_id": 0,
}
EXPERTS: Mapping[str, Any] = {
    "num_experts": 8,
    "num_experts_per_tok": 4,
    "moe_intermediate_size": 96,
    "num_dense_layers": 2,
    "use_expert_bias": True,
    "norm_topk_prob": True,
    "routed_scaling_factor": 1.5,
}
MOE: Mapping[str, Any] = {
    **{key: value for key, value in NEW.items() if key != "block_auto_adjust_ff_dim"},
    **EXPERTS,
    "architectures": ["Lfm2MoeForCausalLM"],
    "model_type": "lfm2_moe",
}


def refuse(raw: Mapping[str, Any], error: type[ConfigError] = ConfigError) -> str:
    """The message with which a config is refused: one line, of exactly this error."""
    with pytest.raises(ConfigError) as caught:
        parse_config(raw)
    assert type(caught.value) is error
    message = str(caught.value)
    assert len(message.splitlines()) == 1
    return message


def without(raw: Mapping[str, Any], *keys: str) -> Raw:
    return {key: value for key, value in raw.items() if key not in keys}


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


REQUIRED = [
    "vocab_size",
    "hidden_size",
    "num_hidden_layers",
    "num_attention_heads",
    "num_key_value_heads",
    "intermediate_size",
    "block_auto_adjust_ff_dim",
    "conv_L_cache",
    "norm_eps",
    "max_position_embeddings",
    "eos_token_id",
    "layer_types",
]


@pytest.mark.parametrize("key", REQUIRED)
def test_missing_key_is_named(key: str) -> None:
    assert f"'{key}'" in refuse(without(NEW, key))


@pytest.mark.parametrize("key", REQUIRED)
def test_null_counts_as_missing(key: str) -> None:
    assert f"'{key}'" in refuse({**NEW, key: None})


@pytest.mark.parametrize(
    "key",
    ["rope_theta", "block_ffn_dim_multiplier", "block_multiple_of", "full_attn_idxs"],
)
def test_missing_key_of_the_old_dialect_is_named(key: str) -> None:
    assert f"'{key}'" in refuse(without(OLD, key))


@pytest.mark.parametrize("key", EXPERTS)
def test_missing_key_of_the_experts_is_named(key: str) -> None:
    assert f"'{key}'" in refuse(without(MOE, key))


@pytest.mark.parametrize("parameters", [{}, {"rope_type": "default"}, [1000000.0], 1000000.0])
def test_rope_parameters_without_theta_are_refused(parameters: object) -> None:
    message = refuse({**NEW, "rope_parameters": parameters})
    assert "rope_parameters" in message
    assert "'rope_theta'" in message


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("vocab_size", "1000"),
        ("vocab_size", 0),
        ("hidden_size", 256.0),
        ("num_hidden_layers", True),
        ("num_attention_heads", -4),
        ("num_key_value_heads", 0),
        ("head_dim", -64),
        ("head_dim", 0),
        ("intermediate_size", [4608]),
        ("conv_L_cache", 1),
        ("norm_eps", 0),
        ("norm_eps", "1e-5"),
        ("max_position_embeddings", 0),
        ("block_auto_adjust_ff_dim", 0),
        ("bos_token_id", "1"),
        ("pad_token_id", -1),
        ("eos_token_id", "7"),
        ("eos_token_id", []),
        ("eos_token_id", [7, True]),
        ("tie_word_embeddings", "yes"),
        ("tie_embedding", 1),
        ("layer_types", 4),
        ("full_attn_idxs", 1),
        ("rope_theta", "a lot"),
    ],
)
def test_value_of_the_wrong_type_is_refused_by_key(key: str, value: object) -> None:
    assert key in refuse({**without(NEW, "tie_word_embeddings"), key: value})


@pytest.mark.parametrize("theta", ["a lot", None, 0, -1.0, True, [1000000.0]])
def test_unusable_theta_in_rope_parameters_is_refused_by_key(theta: object) -> None:
    assert "rope_theta" in refuse({**NEW, "rope_parameters": {"rope_theta": theta}})


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("num_experts", 0),
        ("num_experts_per_tok", 0),
        ("moe_intermediate_size", "96"),
        ("num_dense_layers", -1),
        ("use_expert_bias", 1),
        ("norm_topk_prob", "true"),
        ("routed_scaling_factor", 0.0),
    ],
)
def test_value_of_the_wrong_type_in_the_experts_is_refused_by_key(key: str, value: object) -> None:
    message = refuse({**MOE, key: value})
    assert f"{key} is {value!r}" in message


def test_unusable_second_name_of_tying_is_the_value_named() -> None:
    assert "'yes'" in refuse({**NEW, "tie_embedding": True, "tie_word_embeddings": "yes"})


@pytest.mark.parametrize(
    ("raw", "names"),
    [
        ({**OLD, "block_dim": 512}, ("hidden_size 256", "block_dim 512")),
        ({**OLD, "conv_dim": 512}, ("hidden_size 256", "conv_dim 512")),
        ({**OLD, "conv_dim_out": 512}, ("hidden_size 256", "conv_dim_out 512")),
        ({**OLD, "num_heads": 8}, ("num_attention_heads 4", "num_heads 8")),
        ({**OLD, "block_norm_eps": 1e-6}, ("norm_eps 1e-05", "block_norm_eps 1e-06")),
        (
            {**NEW, "rope_theta": 10000.0},
            ("rope_theta 10000.0", "rope_parameters.rope_theta 1000000.0"),
        ),
        ({**NEW, "tie_embedding": False}, ("tie_embedding", "tie_word_embeddings")),
        ({**NEW, "full_attn_idxs": [1]}, ("layer_types", "full_attn_idxs")),
        ({**NEW, "full_attn_idxs": []}, ("layer_types", "full_attn_idxs")),
        ({**NEW, "num_hidden_layers": 3}, ("layer_types lists 4", "num_hidden_layers says 3")),
        ({**OLD, "full_attn_idxs": [1, 4]}, ("full_attn_idxs", "layer 4", "0 to 3")),
        ({**OLD, "full_attn_idxs": [-1]}, ("full_attn_idxs", "layer -1", "0 to 3")),
        ({**OLD, "full_attn_idxs": ["1"]}, ("full_attn_idxs", "layer '1'")),
        ({**NEW, "hidden_size": 250}, ("hidden_size 250", "num_attention_heads 4", "head_dim")),
        (
            {**NEW, "num_key_value_heads": 3},
            ("num_attention_heads 4", "num_key_value_heads 3"),
        ),
        ({**MOE, "num_experts_per_tok": 9}, ("num_experts_per_tok 9", "num_experts 8")),
        ({**MOE, "num_dense_layers": 5}, ("num_dense_layers 5", "num_hidden_layers 4")),
    ],
)
def test_contradiction_names_both_sides(raw: Raw, names: tuple[str, ...]) -> None:
    message = refuse(raw)
    for name in names:
        assert name in message


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("rope_scaling", {"type": "linear", "factor": 2.0}),
        ("sliding_window", 4096),
        ("quantization_config", {"bits": 4}),
        ("attention_bias", True),
        ("mlp_bias", True),
        ("conv_bias", True),
        ("block_use_swiglu", False),
        ("use_pos_enc", False),
    ],
)
def test_key_that_changes_the_arithmetic_is_refused_by_name(key: str, value: object) -> None:
    assert f"{key} is {value!r}" in refuse({**NEW, key: value}, UnsupportedModelError)


def test_null_for_a_key_that_changes_the_arithmetic_is_accepted() -> None:
    assert parse_config({**NEW, "rope_scaling": None, "conv_bias": None}) == parse_config(NEW)


def test_other_rope_type_is_refused_by_name() -> None:
    parameters = {"rope_theta": 1000000.0, "rope_type": "yarn"}
    message = refuse({**NEW, "rope_parameters": parameters}, UnsupportedModelError)
    assert "'yarn'" in message


@pytest.mark.parametrize("kind", ["sliding_attention", "linear_attention"])
def test_unknown_layer_type_is_refused_by_name(kind: str) -> None:
    layers = ["conv", "full_attention", kind, "full_attention"]
    assert f"'{kind}'" in refuse({**NEW, "layer_types": layers}, UnsupportedModelError)


@pytest.mark.parametrize("model_type", ["llama", "lfm", None])
def test_unknown_model_type_is_refused_with_the_expected_ones(model_type: object) -> None:
    message = refuse({**NEW, "model_type": model_type}, UnsupportedModelError)
    assert repr(model_type) in message
    assert "'lfm2' or 'lfm2_moe'" in message
    assert "LFM3" not in message


@pytest.mark.parametrize("model_type", ["lfm3", "lfm3_moe", "LFM3"])
def test_lfm3_model_type_is_refused_by_name(model_type: str) -> None:
    message = refuse({**NEW, "model_type": model_type}, UnsupportedModelError)
    assert repr(model_type) in message
    assert "LFM3" in message


@pytest.mark.parametrize("model_type", ["lfm2", "lfm2_moe"])
def test_lfm3_architecture_under_an_lfm2_type_is_refused_by_name(model_type: str) -> None:
    raw = {**MOE, "model_type": model_type, "architectures": ["Lfm3ForCausalLM"]}
    assert "LFM3" in refuse(raw, UnsupportedModelError)


@pytest.mark.parametrize(("model_type", "key"), [("lfm2_vl", "text_config"), ("lfm2_audio", "lfm")])
@pytest.mark.parametrize("text", [NEW, MOE])
def test_multimodal_config_gives_its_text_part(
    model_type: str, key: str, text: Mapping[str, Any]
) -> None:
    config = parse_config({"model_type": model_type, key: text, "vocab_size": 5})
    assert config.text_part_of == model_type
    assert config.vocab_size == 1000
    assert config.moe == parse_config(text).moe


@pytest.mark.parametrize("part", [{}, {"text_config": None}, {"text_config": "lfm2"}])
def test_multimodal_config_without_text_part_is_refused_by_key(part: Raw) -> None:
    message = refuse({"model_type": "lfm2_vl", **part})
    assert "'lfm2_vl'" in message
    assert "'text_config'" in message


@pytest.mark.parametrize("model_type", ["lfm3", "llama"])
def test_multimodal_config_around_another_model_is_refused_by_name(model_type: str) -> None:
    text = without(NEW, "architectures") | {"model_type": model_type}
    refuse({"model_type": "lfm2_vl", "text_config": text}, UnsupportedModelError)


@pytest.mark.parametrize("whole_folder", [True, False])
def test_config_is_read_from_the_folder_or_the_file(tmp_path: Path, whole_folder: bool) -> None:
    file = tmp_path / "config.json"
    file.write_text(json.dumps(OLD), encoding="utf-8")
    assert read_config(tmp_path if whole_folder else file) == parse_config(OLD)


@pytest.mark.parametrize("name", [".", "absent", "absent/config.json"])
def test_absent_file_is_refused_with_what_to_pass(tmp_path: Path, name: str) -> None:
    with pytest.raises(ConfigError) as caught:
        read_config(tmp_path / name)
    assert f"no config.json in {tmp_path / name}" in str(caught.value)
    assert "pass the folder" in str(caught.value)


@pytest.mark.parametrize("content", [b"", b"{", b'{"model_type": "lfm2"', b"\xff\xfe\x00"])
def test_unreadable_file_is_refused_by_path(tmp_path: Path, content: bytes) -> None:
    file = tmp_path / "config.json"
    file.write_bytes(content)
    with pytest.raises(ConfigError) as caught:
        read_config(tmp_path)
    assert f"{file} is not readable JSON" in str(caught.value)


@pytest.mark.parametrize(("content", "kind"), [("[]", "list"), ('"lfm2"', "str"), ("1", "int")])
def test_file_without_an_object_is_refused(tmp_path: Path, content: str, kind: str) -> None:
    (tmp_path / "config.json").write_text(content, encoding="utf-8")
    with pytest.raises(ConfigError, match=f"holds a {kind}, expected a JSON object"):
        read_config(tmp_path)


def test_no_attention_layer_by_indices_agrees_with_all_conv_layer_types() -> None:
    layers = ["conv"] * 4
    raw = {**NEW, "num_hidden_layers": 4, "layer_types": layers, "full_attn_idxs": []}
    assert parse_config(raw).attention_layers == ()


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("norm_eps", float("nan")),
        ("norm_eps", float("inf")),
        ("norm_eps", 10**400),
        ("model_type", ["lfm2"]),
        ("architectures", 5),
        ("eos_token_id", -5),
        ("eos_token_id", 10**9),
        ("bos_token_id", 10**9),
        ("pad_token_id", 10**9),
        ("head_dim", 63),
        ("num_hidden_layers", 200_000),
        ("hidden_size", 2**40),
        ("max_position_embeddings", 2**40),
    ],
)
def test_value_that_no_model_has_is_refused_by_key(key: str, value: object) -> None:
    with pytest.raises(ConfigError, match=key):
        parse_config({**NEW, key: value})


@pytest.mark.parametrize(("key", "value"), [("hidden_act", "gelu"), ("partial_rotary_factor", 0.5)])
def test_other_arithmetic_is_refused_by_key(key: str, value: object) -> None:
    with pytest.raises(UnsupportedModelError, match=key):
        parse_config({**NEW, key: value})


def test_other_rotary_parameters_are_refused_by_key() -> None:
    rope = {"rope_theta": 1e6, "rope_type": "default", "partial_rotary_factor": 0.5}
    raw = {**NEW, "rope_parameters": rope}
    with pytest.raises(UnsupportedModelError, match="partial_rotary_factor"):
        parse_config(raw)


def test_file_nested_too_deeply_is_refused(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text("[" * 200_000)
    with pytest.raises(ConfigError, match="not readable JSON"):
        read_config(tmp_path)


@pytest.mark.parametrize("multiplier", [1e308, 1e6])
def test_multiplier_beyond_any_model_is_refused_by_key(multiplier: float) -> None:
    with pytest.raises(ConfigError, match="block_ffn_dim_multiplier"):
        parse_config({**OLD, "block_ffn_dim_multiplier": multiplier})
