"""A model of four layers, one of each kind, whose sizes are all different.

A width taken for another would not fit, or would not give the same numbers.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping
from typing import Any

import pytest

from exporters.stitch import BlockTracer
from exporters.trace import trace_layer
from lfm2_deploy.checkpoint.synthetic import SyntheticCheckpoint
from lfm2_deploy.config import parse_config
from lfm2_deploy.contracts import Checkpoint, Origin
from lfm2_deploy.weights import list_weights

TINY: Mapping[str, Any] = {
    "model_type": "lfm2_moe",
    "vocab_size": 100,
    "hidden_size": 64,
    "num_hidden_layers": 4,
    "layer_types": ["conv", "full_attention", "full_attention", "conv"],
    "num_attention_heads": 6,
    "num_key_value_heads": 2,
    "head_dim": 16,
    "intermediate_size": 160,
    "conv_L_cache": 4,
    "norm_eps": 1e-5,
    "rope_theta": 10000.0,
    "max_position_embeddings": 64,
    "tie_word_embeddings": True,
    "bos_token_id": 1,
    "eos_token_id": 7,
    "pad_token_id": 0,
    "num_experts": 5,
    "num_experts_per_tok": 2,
    "moe_intermediate_size": 32,
    "num_dense_layers": 2,
    "use_expert_bias": True,
    "norm_topk_prob": True,
    "routed_scaling_factor": 1.5,
}


@pytest.fixture(scope="session")
def make_checkpoint() -> Callable[..., Checkpoint]:
    """Random weights of the tiny model, changed by `options`."""

    def make(**options: Any) -> Checkpoint:
        raw = {**TINY, **options}
        config = parse_config(raw)
        specs = {spec.name: spec for spec in list_weights(config)}
        return SyntheticCheckpoint(config, raw, Origin("synthetic", "tiny"), {}, 0, specs)

    return make


@pytest.fixture(scope="session")
def checkpoint(make_checkpoint: Callable[..., Checkpoint]) -> Checkpoint:
    """The tiny model itself."""
    return make_checkpoint()


@pytest.fixture(scope="session")
def trace_once() -> BlockTracer:
    """`trace_layer`, with each layer of each model traced once a session."""
    return functools.cache(trace_layer)
