"""GGUF metadata -> the object of a config.json, and what the metadata leave open.

Enters: a file's header. Leaves: keys under Hugging Face's names, for `config.parse_config` to
check. Knows the keys that llama.cpp writes for its architectures lfm2 and lfm2moe.

Source: llama.cpp, conversion/base.py and conversion/lfm2.py, src/models/lfm2moe.cpp (gguf 0.19).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from lfm2_deploy.checkpoint.gguf_file import GgufFile
from lfm2_deploy.checkpoint.gguf_layout import BIAS, OUTPUT
from lfm2_deploy.config import DENSE, MOE, Lfm2Config, parse_config
from lfm2_deploy.errors import ConfigError, UnsupportedModelError

_ARCHITECTURES = {"lfm2": DENSE, "lfm2moe": MOE}
_CLASSES = {DENSE: "Lfm2ForCausalLM", MOE: "Lfm2MoeForCausalLM"}
# What llama.cpp calls files of vision and audio encoders.
_PROJECTORS = ("clip", "mmproj")
_SIGMOID = 2


@dataclass(frozen=True, slots=True)
class _Keys:
    """An architecture's own metadata: numbers as Python's."""

    metadata: Mapping[str, Any]
    architecture: str

    def find(self, key: str) -> Any:
        """A value, or None."""
        value = self.metadata.get(f"{self.architecture}.{key}")
        # Metadata hold float32: the shortest number that rounds to it is what was written.
        return float(str(np.float32(value))) if isinstance(value, float) else value

    def token(self, role: str) -> Any:
        """A special token's id, or None."""
        return self.metadata.get(f"tokenizer.ggml.{role}_token_id")


def read_gguf_config(file: GgufFile) -> tuple[dict[str, Any], Lfm2Config]:
    """The config of a file's model.

    Args:
        file: its header.

    Returns:
        A config.json's object, and what it means; assumptions name what no key says.

    Raises:
        UnsupportedModelError: it is of another architecture, or a vision or audio encoder.
        ConfigError: a key is missing or makes no sense.
    """
    keys = _Keys(file.metadata, _find_architecture(file))
    model_type = _ARCHITECTURES[keys.architecture]
    raw = {
        "architectures": [_CLASSES[model_type]],
        "model_type": model_type,
        **_list_shape(file, keys),
        **_list_tokens(keys),
        **_list_refused(file, keys),
    }
    assumptions: list[str] = []
    if model_type == MOE:
        raw |= _list_experts(file, keys, assumptions)
    else:
        # The width in the metadata is the one that is really used.
        raw["block_auto_adjust_ff_dim"] = False
    raw = {key: value for key, value in raw.items() if value is not None}
    try:
        config = parse_config(raw)
    except UnsupportedModelError as error:
        raise UnsupportedModelError(_explain(file, error)) from error
    except ConfigError as error:
        raise ConfigError(_explain(file, error)) from error
    return raw, replace(config, assumptions=(*config.assumptions, *assumptions))


def _explain(file: GgufFile, error: ConfigError) -> str:
    return f"the metadata of {file.path} make no usable model, read as a config.json: {error}"


def _find_architecture(file: GgufFile) -> str:
    found = file.metadata.get("general.architecture")
    if found in _ARCHITECTURES:
        return str(found)
    kind = file.metadata.get("general.type")
    if found in _PROJECTORS or kind in _PROJECTORS:
        raise UnsupportedModelError(
            f"{file.path} is a vision or audio encoder (mmproj), not a text model; pass the "
            "model's own file, which lies beside it"
        )
    seen = "no architecture" if found is None else f"architecture {str(found)[:100]!r}"
    raise UnsupportedModelError(
        f"{file.path} has {seen}: expected 'lfm2' or 'lfm2moe', as GGUF files of LFM2 models have"
    )


def _list_shape(file: GgufFile, keys: _Keys) -> dict[str, Any]:
    kinds, kv_heads = _find_layers(file, keys)
    vocab, tokens = keys.find("vocab_size"), file.metadata.get("tokenizer.ggml.tokens")
    if vocab is None and isinstance(tokens, list):
        vocab = len(tokens)
    return {
        "vocab_size": vocab,
        "hidden_size": keys.find("embedding_length"),
        "intermediate_size": keys.find("feed_forward_length"),
        "num_hidden_layers": keys.find("block_count"),
        "layer_types": kinds,
        "num_attention_heads": keys.find("attention.head_count"),
        "num_key_value_heads": kv_heads,
        "head_dim": keys.find("attention.key_length"),
        "conv_L_cache": keys.find("shortconv.l_cache"),
        "conv_bias": False,
        "norm_eps": keys.find("attention.layer_norm_rms_epsilon"),
        "rope_parameters": {"rope_theta": keys.find("rope.freq_base"), "rope_type": "default"},
        "max_position_embeddings": keys.find("context_length"),
        "tie_word_embeddings": OUTPUT not in file.tensors,
    }


def _find_layers(file: GgufFile, keys: _Keys) -> tuple[list[str], int]:
    """Each layer's kind, and how many key-value heads attention has: 0 of them is a convolution."""
    heads = keys.find("attention.head_count_kv")
    name = f"{keys.architecture}.attention.head_count_kv"
    if not isinstance(heads, np.ndarray) or heads.dtype.kind not in "iu":
        raise ConfigError(
            f"{file.path}: {name} is not a list of a number for each layer, which tells "
            "convolutions from attention; convert the model again with a current llama.cpp"
        )
    distinct = sorted({int(count) for count in heads if count})
    if len(distinct) != 1:
        raise UnsupportedModelError(
            f"{file.path}: {name} holds {distinct[:3]} beside 0, expected one number of heads, "
            "as in every LFM2 model"
        )
    return ["full_attention" if count else "conv" for count in heads], distinct[0]


def _list_tokens(keys: _Keys) -> dict[str, Any]:
    ends = [token for token in (keys.token("eos"), keys.token("eot")) if token is not None]
    distinct = list(dict.fromkeys(ends))
    return {
        "bos_token_id": keys.token("bos"),
        "eos_token_id": distinct[0] if len(distinct) == 1 else distinct or None,
        "pad_token_id": keys.token("padding"),
    }


def _list_refused(file: GgufFile, keys: _Keys) -> dict[str, Any]:
    """Keys that change the arithmetic, under names that `parse_config` refuses."""
    scaling, window = keys.find("rope.scaling.type"), keys.find("attention.sliding_window")
    head, rotated = keys.find("attention.key_length"), keys.find("rope.dimension_count")
    refused: dict[str, Any] = {
        "rope_scaling": None if scaling in (None, "none") else scaling,
        "sliding_window": window or None,
    }
    if keys.find("attention.causal") is False:
        raise UnsupportedModelError(
            f"{file.path}: attention looks both ways (attention.causal is false): this is an "
            "encoder such as LFM2-ColBERT, not a model that generates text"
        )
    if rotated is not None and head is not None and rotated != head:
        refused["partial_rotary_factor"] = rotated / head
    return refused


def _list_experts(file: GgufFile, keys: _Keys, assumptions: list[str]) -> dict[str, Any]:
    gating = keys.find("expert_gating_func")
    if gating != _SIGMOID:
        raise UnsupportedModelError(
            f"{file.path}: {keys.architecture}.expert_gating_func is {gating!r}, expected "
            f"{_SIGMOID} (sigmoid), as in every LFM2 model"
        )
    norm, scale = keys.find("expert_weights_norm"), keys.find("expert_weights_scale")
    if norm is None:
        assumptions.append("norm_topk_prob = true (as llama.cpp computes; no key in the GGUF file)")
    if scale is None:
        assumptions.append("routed_scaling_factor = 1.0 (no key in the GGUF file)")
    return {
        "num_experts": keys.find("expert_count"),
        "num_experts_per_tok": keys.find("expert_used_count"),
        "moe_intermediate_size": keys.find("expert_feed_forward_length"),
        "num_dense_layers": keys.find("leading_dense_block_count"),
        "use_expert_bias": any(name.endswith(BIAS) for name in file.tensors),
        "norm_topk_prob": True if norm is None else norm,
        "routed_scaling_factor": 1.0 if scale is None else scale,
    }
