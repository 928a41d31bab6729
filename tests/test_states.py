"""The states of a model: names, order and shapes."""

from __future__ import annotations

import pytest

from lfm2_deploy.config import Lfm2Config, parse_config
from lfm2_deploy.states import BATCH, CAPACITY, StateSpec, list_states


def make_config(layer_types: list[str], conv_width: int = 3) -> Lfm2Config:
    return parse_config(
        {
            "model_type": "lfm2",
            "vocab_size": 32,
            "hidden_size": 24,
            "num_hidden_layers": len(layer_types),
            "layer_types": layer_types,
            "num_attention_heads": 4,
            "num_key_value_heads": 2,
            "intermediate_size": 16,
            "block_auto_adjust_ff_dim": False,
            "conv_L_cache": conv_width,
            "norm_eps": 1e-5,
            "rope_theta": 10000.0,
            "max_position_embeddings": 64,
            "tie_word_embeddings": True,
            "eos_token_id": 7,
        }
    )


def test_states_come_layer_by_layer_with_key_before_value() -> None:
    conv, kv = (BATCH, 24, 2), (BATCH, 2, CAPACITY, 6)
    assert list_states(make_config(["conv", "full_attention", "conv"])) == (
        StateSpec("past.0.conv", "present.0.conv", "conv", 0, conv, "float32"),
        StateSpec("past_key_values.1.key", "present.1.key", "key", 1, kv, "float32"),
        StateSpec("past_key_values.1.value", "present.1.value", "value", 1, kv, "float32"),
        StateSpec("past.2.conv", "present.2.conv", "conv", 2, conv, "float32"),
    )


@pytest.mark.parametrize("width", [2, 3, 7])
def test_conv_state_is_one_column_narrower_than_the_convolution(width: int) -> None:
    (state,) = list_states(make_config(["conv"], conv_width=width))
    assert state.shape == (BATCH, 24, width - 1)


def test_other_dtype_reaches_every_state() -> None:
    states = list_states(make_config(["conv", "full_attention"]), dtype="float16")
    assert [state.dtype for state in states] == ["float16"] * 3


@pytest.mark.parametrize(
    ("kind", "shape"), [("conv", (5, 24, 2)), ("full_attention", (5, 2, 100, 6))]
)
def test_concrete_shape_fills_in_batch_and_capacity(kind: str, shape: tuple[int, ...]) -> None:
    for state in list_states(make_config([kind])):
        assert state.concrete_shape(batch_size=5, capacity=100) == shape
