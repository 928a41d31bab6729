"""The same models in the words of different releases."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

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


def without(raw: Mapping[str, Any], *keys: str) -> Raw:
    return {key: value for key, value in raw.items() if key not in keys}
