"""genai_config.json leads onnxruntime-genai to the graph's own names."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from exporters.genai_config import make_genai_config
from exporters.readers.reader import READERS, Reader
from lfm2_deploy.contracts import Checkpoint
from lfm2_deploy.manifest import GENAI_LEGACY
from lfm2_deploy.options import GenerationOptions
from lfm2_deploy.states import list_states

MakeCheckpoint = Callable[..., Checkpoint]


def make(checkpoint: Checkpoint, *reader: Reader, **given: Any) -> dict[str, Any]:
    config = checkpoint.config
    return make_genai_config(config, list_states(config), "model.onnx", 48, *reader, **given)


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


@pytest.mark.parametrize(
    ("defaults", "expected"),
    [
        ({}, {"do_sample": False, "temperature": 1.0, "top_k": 50, "repetition_penalty": 1.0}),
        # genai has no min_p: transformers' own top_k stands in for it.
        (
            {"temperature": 0.3, "min_p": 0.15, "repetition_penalty": 1.05},
            {"do_sample": True, "temperature": 0.3, "top_k": 50, "repetition_penalty": 1.05},
        ),
        ({"temperature": 0.1, "top_k": 80}, {"do_sample": True, "top_k": 80, "top_p": 1.0}),
        # Never more than there are tokens, which genai refuses.
        ({"temperature": 0.1, "top_k": 400}, {"top_k": 100}),
        ({"temperature": 0.9, "do_sample": False}, {"do_sample": False}),
    ],
)
def test_search_is_the_models_own_sampling(
    checkpoint: Checkpoint, defaults: dict[str, Any], expected: dict[str, Any]
) -> None:
    options = GenerationOptions.from_generation_config(defaults)
    search = make(checkpoint, defaults=options)["search"]
    assert search.items() >= expected.items()
    assert "min_p" not in search
    assert search["max_length"] == 48


def test_end_tokens_of_both_files_are_listed_once(make_checkpoint: MakeCheckpoint) -> None:
    options = GenerationOptions(eos_token_ids=(9, 7))
    found = make(make_checkpoint(eos_token_id=7), defaults=options)
    assert found["model"]["eos_token_id"] == [7, 9]


def test_old_genai_gets_no_key_it_does_not_know(checkpoint: Checkpoint) -> None:
    new = make(checkpoint, tool_calls=(10, 11))["model"]
    old = make(checkpoint, READERS[GENAI_LEGACY], tool_calls=(10, 11))["model"]
    assert (new["bot_token_id"], new["eot_token_id"]) == (10, 11)
    assert set(new) - set(old) == {"bot_token_id", "eot_token_id"}
    assert (new["type"], old["type"]) == ("lfm2_moe", "lfm2")
    assert old["decoder"]["inputs"]["past_conv_names"] == "past_conv.%d"
