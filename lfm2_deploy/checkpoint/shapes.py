"""The architectures that synthetic checkpoints can take.

Numbers that tell the models of the family apart, and the config.json object they
make. No weights, no files.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from lfm2_deploy.config import DENSE, MOE

_KINDS = {"c": "conv", "a": "full_attention"}


@dataclass(frozen=True, slots=True)
class Vocabulary:
    """How many tokens there are, and which are special."""

    size: int
    bos: int
    eos: int
    pad: int


@dataclass(frozen=True, slots=True)
class Experts:
    """The mixture in each layer after the dense ones; four experts are chosen."""

    count: int
    width: int
    dense_layers: int = 2


@dataclass(frozen=True, slots=True)
class Shape:
    """One model.

    Args:
        hidden: width of the residual stream; a head is 64 of it.
        layers: one letter a layer, "c" convolution or "a" attention.
        feed_forward: width of a dense feed-forward.
        experts: the mixture, of MoE models.
    """

    hidden: int
    layers: str
    feed_forward: int
    experts: Experts | None = None
    kv_heads: int = 8
    vocabulary: Vocabulary = Vocabulary(65536, bos=1, eos=7, pad=0)
    rope_theta: float = 1e6
    max_positions: int = 128000


_128K = Vocabulary(128000, bos=124894, eos=124900, pad=124893)
_TINY = Vocabulary(512, bos=1, eos=7, pad=0)
_16_LAYERS = "cca" * 3 + "ca" * 3 + "c"
_30_LAYERS = "cca" * 2 + "ccca" * 4 + "cca" * 2 + "cc"
_24_LAYERS = "cca" + "ccca" * 4 + "cca" + "cc"
_40_LAYERS = "cca" + "ccca" * 9 + "c"

SHAPES: Mapping[str, Shape] = {
    "LFM2-350M": Shape(1024, _16_LAYERS, 4608),
    "LFM2-700M": Shape(1536, _16_LAYERS, 6912),
    "LFM2-1.2B": Shape(2048, _16_LAYERS, 8192),
    "LFM2-2.6B": Shape(2048, _30_LAYERS, 10752),
    "LFM2-8B-A1B": Shape(2048, _24_LAYERS, 7168, Experts(32, 1792)),
    "LFM2-24B-A2B": Shape(2048, _40_LAYERS, 11776, Experts(64, 1536)),
    "LFM2.5-230M": Shape(1024, "cca" + "ca" * 5 + "c", 2560),
    "LFM2.5-350M": Shape(1024, _16_LAYERS, 4608),
    "LFM2.5-1.2B": Shape(2048, _16_LAYERS, 8192),
    "LFM2.5-2.6B": Shape(
        2048, _30_LAYERS, 10752, vocabulary=_128K, rope_theta=1e7, max_positions=131072
    ),
    "LFM2.5-8B-A1B": Shape(
        2048, _24_LAYERS, 7168, Experts(32, 1792), vocabulary=_128K, rope_theta=5e6
    ),
    "tiny-dense": Shape(128, "ccac", 192, kv_heads=1, vocabulary=_TINY, max_positions=4096),
    "tiny-moe": Shape(
        128,
        "caca",
        192,
        Experts(8, 64, dense_layers=1),
        kv_heads=1,
        vocabulary=_TINY,
        max_positions=4096,
    ),
}


def make_config(shape: Shape) -> dict[str, Any]:
    """The config.json object of a shape, in the dialect of transformers 5."""
    config: dict[str, Any] = {
        "architectures": ["Lfm2MoeForCausalLM" if shape.experts else "Lfm2ForCausalLM"],
        "model_type": MOE if shape.experts else DENSE,
        "vocab_size": shape.vocabulary.size,
        "hidden_size": shape.hidden,
        "num_hidden_layers": len(shape.layers),
        "layer_types": [_KINDS[letter] for letter in shape.layers],
        "num_attention_heads": shape.hidden // 64,
        "num_key_value_heads": shape.kv_heads,
        "intermediate_size": shape.feed_forward,
        "conv_L_cache": 3,
        "conv_bias": False,
        "norm_eps": 1e-5,
        "rope_parameters": {"rope_type": "default", "rope_theta": shape.rope_theta},
        "max_position_embeddings": shape.max_positions,
        "tie_word_embeddings": True,
        "bos_token_id": shape.vocabulary.bos,
        "eos_token_id": shape.vocabulary.eos,
        "pad_token_id": shape.vocabulary.pad,
    }
    return config | (_moe_keys(shape.experts) if shape.experts else _dense_keys())


def _dense_keys() -> dict[str, Any]:
    return {"block_auto_adjust_ff_dim": False}


def _moe_keys(experts: Experts) -> dict[str, Any]:
    return {
        "num_experts": experts.count,
        "num_experts_per_tok": 4,
        "moe_intermediate_size": experts.width,
        "num_dense_layers": experts.dense_layers,
        "use_expert_bias": True,
        "norm_topk_prob": True,
        "routed_scaling_factor": 1.0,
    }
