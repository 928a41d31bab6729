"""The list of weights agrees with the model that is built from them."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from typing import Any

import pytest
import torch

from lfm2_deploy.config import Lfm2Config, parse_config
from lfm2_deploy.model.decoder import Decoder, checkpoint_name
from lfm2_deploy.weights import WeightSpec, list_weights

SHAPE: Mapping[str, Any] = {
    "vocab_size": 40,
    "hidden_size": 24,
    "num_hidden_layers": 4,
    "layer_types": ["conv", "full_attention", "full_attention", "conv"],
    "num_attention_heads": 6,
    "num_key_value_heads": 2,
    "head_dim": 8,  # not hidden_size / heads, so that neither can stand for the other
    "intermediate_size": 20,
    "block_auto_adjust_ff_dim": False,
    "conv_L_cache": 4,
    "norm_eps": 1e-5,
    "rope_theta": 10000.0,
    "max_position_embeddings": 64,
    "eos_token_id": 7,
}
EXPERTS: Mapping[str, Any] = {
    "num_experts": 3,
    "num_experts_per_tok": 2,
    "moe_intermediate_size": 10,
    "num_dense_layers": 1,
    "norm_topk_prob": True,
    "routed_scaling_factor": 1.0,
}


def make_config(kind: str, *, tied: bool = True, bias: bool = True) -> Lfm2Config:
    raw = {**SHAPE, "model_type": kind, "tie_word_embeddings": tied}
    return parse_config(raw | EXPERTS | {"use_expert_bias": bias} if kind == "lfm2_moe" else raw)


@pytest.mark.parametrize("kind", ["lfm2", "lfm2_moe"])
@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("bias", [True, False])
def test_weights_are_the_decoders_parameters(kind: str, tied: bool, bias: bool) -> None:
    config = make_config(kind, tied=tied, bias=bias)
    with torch.device("meta"):
        decoder = Decoder(config)
    parameters = {
        checkpoint_name(name): tuple(parameter.shape)
        for name, parameter in decoder.named_parameters()
    }
    weights = list_weights(config)
    assert {weight.name: weight.shape for weight in weights} == parameters
    assert len(weights) == len(parameters)


def test_untied_head_is_last_and_tied_one_is_not_listed() -> None:
    tied = list_weights(make_config("lfm2"))
    untied = list_weights(make_config("lfm2", tied=False))
    assert untied == (*tied, WeightSpec("lm_head.weight", (40, 24), "head"))


@pytest.mark.parametrize("bias", [True, False])
def test_moe_roles_are_counted_by_layer_and_expert(bias: bool) -> None:
    weights = list_weights(make_config("lfm2_moe", bias=bias))
    assert Counter(weight.role for weight in weights) == Counter(
        embedding=1,
        norm=2 * 4 + 2 * 2 + 1,  # two a layer, two more in attention, the final one
        projection=2 * 2 + 2 * 4 + 3,  # two in a conv, four in attention, one dense layer
        conv=2,
        router=3,
        bias=3 if bias else 0,
        expert=3 * 3 * 3,
    )


def test_names_and_shapes_of_an_expert_layer_are_transformers() -> None:
    shapes = {weight.name: weight.shape for weight in list_weights(make_config("lfm2_moe"))}
    layer = "model.layers.3"
    assert shapes[f"{layer}.conv.in_proj.weight"] == (72, 24)
    assert shapes[f"{layer}.conv.conv.weight"] == (24, 1, 4)
    assert shapes[f"{layer}.feed_forward.gate.weight"] == (3, 24)
    assert shapes[f"{layer}.feed_forward.expert_bias"] == (3,)
    assert shapes[f"{layer}.feed_forward.experts.2.w1.weight"] == (10, 24)
    assert shapes[f"{layer}.feed_forward.experts.2.w2.weight"] == (24, 10)
    assert shapes["model.layers.0.feed_forward.w1.weight"] == (20, 24)
    assert shapes["model.layers.1.self_attn.q_proj.weight"] == (48, 24)
    assert shapes["model.layers.1.self_attn.k_layernorm.weight"] == (8,)


@pytest.mark.parametrize(("shape", "count"), [((40, 24), 960), ((24, 1, 4), 96), ((8,), 8)])
def test_num_elements_is_the_product_of_the_shape(shape: tuple[int, ...], count: int) -> None:
    assert WeightSpec("any", shape, "norm").num_elements == count
