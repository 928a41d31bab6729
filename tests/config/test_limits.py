"""config.json: a hostile file can ask for no more than some model could need."""

from __future__ import annotations

import pytest

from lfm2_deploy.config import parse_config
from lfm2_deploy.errors import ConfigError, UnsupportedModelError

from .dialects import MOE, NEW, OLD


def test_multiplier_that_leaves_no_width_is_refused_by_key() -> None:
    with pytest.raises(ConfigError, match="block_ffn_dim_multiplier"):
        parse_config({**OLD, "block_ffn_dim_multiplier": 1e-9})


@pytest.mark.parametrize(
    ("key", "value"),
    [("vocab_size", 2**24 + 1), ("conv_L_cache", 1025), ("num_key_value_heads", 2**20 + 1)],
)
def test_value_above_its_maximum_is_refused_by_key(key: str, value: int) -> None:
    with pytest.raises(ConfigError, match=f"{key} is above"):
        parse_config({**NEW, key: value})


def test_more_experts_than_a_layer_can_have_are_refused_by_key() -> None:
    with pytest.raises(ConfigError, match="num_experts is above 4,096"):
        parse_config({**MOE, "num_experts": 4097})


def test_more_experts_than_all_layers_can_have_are_refused_by_key() -> None:
    layers = ["conv"] * 1024
    raw = {**MOE, "num_experts": 4096, "num_hidden_layers": 1024, "layer_types": layers}
    with pytest.raises(ConfigError, match="num_experts 4096 in each of num_hidden_layers 1024"):
        parse_config(raw)


def test_infinite_theta_is_refused_by_key() -> None:
    rope = {"rope_theta": float("inf"), "rope_type": "default"}
    with pytest.raises(ConfigError, match="rope_theta is inf"):
        parse_config({**NEW, "rope_parameters": rope})


def test_rope_type_under_its_old_name_is_refused() -> None:
    raw = {**NEW, "rope_parameters": {"rope_theta": 1e6, "type": "yarn"}}
    with pytest.raises(UnsupportedModelError, match="rope_type 'yarn'"):
        parse_config(raw)


def test_unused_rotary_parameters_without_value_are_accepted() -> None:
    rope = {"rope_theta": 1e6, "rope_type": "default", "factor": None}
    assert parse_config({**NEW, "rope_parameters": rope}).rope_theta == 1e6
