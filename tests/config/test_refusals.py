"""config.json: every way a file can be unusable is named by its key."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from lfm2_deploy.config import parse_config, read_config
from lfm2_deploy.errors import ConfigError, UnsupportedModelError

from .dialects import EXPERTS, MOE, NEW, OLD, Raw, without


def refuse(raw: Mapping[str, Any], error: type[ConfigError] = ConfigError) -> str:
    """The message with which a config is refused: one line, of exactly this error."""
    with pytest.raises(ConfigError) as caught:
        parse_config(raw)
    assert type(caught.value) is error
    message = str(caught.value)
    assert len(message.splitlines()) == 1
    return message


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
    message = refuse(raw, UnsupportedModelError)
    assert "'Lfm3ForCausalLM'" in message
    assert "LFM3 differs" in message


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
