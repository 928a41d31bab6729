"""genai_config.json leads onnxruntime-genai to the graph's own names."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from exporters.genai_config import make_genai_config
from lfm2_deploy.contracts import Checkpoint
from lfm2_deploy.states import list_states

MakeCheckpoint = Callable[..., Checkpoint]


def make(checkpoint: Checkpoint) -> dict[str, Any]:
    config = checkpoint.config
    return make_genai_config(config, list_states(config), "model.onnx", 48)


def fill_patterns(names: dict[str, str], config: dict[str, Any]) -> set[str]:
    """Every name that patterns like `past.%d.conv` stand for."""
    keys = {"conv": ("_conv_names",), "full_attention": ("_key_names", "_value_names")}
    return {
        pattern % layer
        for layer, kind in enumerate(config["layer_types"])
        for key, pattern in names.items()
        if key.endswith(keys[kind])
    }


@pytest.mark.parametrize(
    "kinds",
    [
        ["conv", "full_attention", "full_attention", "conv"],
        ["full_attention", "conv", "conv", "full_attention"],
        ["full_attention"] * 4,
        ["conv"] * 4,
    ],
)
def test_patterns_name_every_state_of_the_graph(
    make_checkpoint: MakeCheckpoint, kinds: list[str]
) -> None:
    checkpoint = make_checkpoint(layer_types=kinds)
    states = list_states(checkpoint.config)
    decoder = make(checkpoint)["model"]["decoder"]
    assert fill_patterns(decoder["inputs"], decoder) == {state.input for state in states}
    assert fill_patterns(decoder["outputs"], decoder) == {state.output for state in states}


def test_sizes_are_the_models(checkpoint: Checkpoint) -> None:
    model = make(checkpoint)["model"]
    assert model["type"] == "lfm2_moe"
    assert (model["vocab_size"], model["context_length"]) == (100, 48)
    decoder = model["decoder"]
    assert decoder["filename"] == "model.onnx"
    assert (decoder["hidden_size"], decoder["head_size"]) == (64, 16)
    assert (decoder["num_attention_heads"], decoder["num_key_value_heads"]) == (6, 2)
    assert decoder["num_hidden_layers"] == len(decoder["layer_types"]) == 4
    # Of a convolution 4 wide, 3 columns are kept.
    assert decoder["conv_cache_size"] == 3


@pytest.mark.parametrize(("given", "listed"), [(7, [7]), ([7, 2], [7, 2])])
def test_end_tokens_are_always_a_list(
    make_checkpoint: MakeCheckpoint, given: int | list[int], listed: list[int]
) -> None:
    assert make(make_checkpoint(eos_token_id=given))["model"]["eos_token_id"] == listed
