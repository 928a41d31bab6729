"""`Lfm2Config` -> the tensors a checkpoint must hold, by canonical name.

Canonical names are transformers' per-expert names, whatever layout a file has.
Readers check a checkpoint against this list; exporters plan from it.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

from lfm2_deploy.config import Lfm2Config

EMBEDDING = "model.embed_tokens.weight"
FINAL_NORM = "model.embedding_norm.weight"
HEAD = "lm_head.weight"

WeightRole = Literal["embedding", "head", "projection", "expert", "router", "bias", "norm", "conv"]


@dataclass(frozen=True, slots=True)
class WeightSpec:
    """One tensor: its canonical name, its shape as [out, in], and what it is for."""

    name: str
    shape: tuple[int, ...]
    role: WeightRole

    @property
    def num_elements(self) -> int:
        """How many numbers the tensor holds."""
        count = 1
        for size in self.shape:
            count *= size
        return count


def list_weights(config: Lfm2Config) -> tuple[WeightSpec, ...]:
    """Every tensor of a model, in model order. A tied head is not listed."""
    vocab = (config.vocab_size, config.hidden_size)
    weights = [WeightSpec(EMBEDDING, vocab, "embedding")]
    for layer in range(config.num_hidden_layers):
        weights += _layer_weights(config, layer)
    weights.append(WeightSpec(FINAL_NORM, (config.hidden_size,), "norm"))
    if not config.tie_word_embeddings:
        weights.append(WeightSpec(HEAD, vocab, "head"))
    return tuple(weights)


def _layer_weights(config: Lfm2Config, layer: int) -> Iterator[WeightSpec]:
    prefix, hidden = f"model.layers.{layer}", config.hidden_size
    yield WeightSpec(f"{prefix}.operator_norm.weight", (hidden,), "norm")
    if config.layer_types[layer] == "conv":
        yield from _conv_weights(config, f"{prefix}.conv")
    else:
        yield from _attention_weights(config, f"{prefix}.self_attn")
    yield WeightSpec(f"{prefix}.ffn_norm.weight", (hidden,), "norm")
    forward = f"{prefix}.feed_forward"
    if config.is_moe_layer(layer):
        yield from _moe_weights(config, forward)
    else:
        yield from _swiglu_weights(forward, hidden, config.intermediate_size, "projection")


def _conv_weights(config: Lfm2Config, prefix: str) -> Iterator[WeightSpec]:
    hidden = config.hidden_size
    yield WeightSpec(f"{prefix}.in_proj.weight", (3 * hidden, hidden), "projection")
    yield WeightSpec(f"{prefix}.conv.weight", (hidden, 1, config.conv_L_cache), "conv")
    yield WeightSpec(f"{prefix}.out_proj.weight", (hidden, hidden), "projection")


def _attention_weights(config: Lfm2Config, prefix: str) -> Iterator[WeightSpec]:
    hidden, head = config.hidden_size, config.head_dim
    query, kv = config.num_attention_heads * head, config.num_key_value_heads * head
    yield WeightSpec(f"{prefix}.q_proj.weight", (query, hidden), "projection")
    yield WeightSpec(f"{prefix}.k_proj.weight", (kv, hidden), "projection")
    yield WeightSpec(f"{prefix}.v_proj.weight", (kv, hidden), "projection")
    yield WeightSpec(f"{prefix}.out_proj.weight", (hidden, query), "projection")
    yield WeightSpec(f"{prefix}.q_layernorm.weight", (head,), "norm")
    yield WeightSpec(f"{prefix}.k_layernorm.weight", (head,), "norm")


def _moe_weights(config: Lfm2Config, prefix: str) -> Iterator[WeightSpec]:
    moe, hidden = config.moe, config.hidden_size
    assert moe is not None
    yield WeightSpec(f"{prefix}.gate.weight", (moe.num_experts, hidden), "router")
    if moe.use_expert_bias:
        yield WeightSpec(f"{prefix}.expert_bias", (moe.num_experts,), "bias")
    for expert in range(moe.num_experts):
        name = f"{prefix}.experts.{expert}"
        yield from _swiglu_weights(name, hidden, moe.moe_intermediate_size, "expert")


def _swiglu_weights(prefix: str, hidden: int, width: int, role: WeightRole) -> Iterator[WeightSpec]:
    yield WeightSpec(f"{prefix}.w1.weight", (width, hidden), role)
    yield WeightSpec(f"{prefix}.w3.weight", (width, hidden), role)
    yield WeightSpec(f"{prefix}.w2.weight", (hidden, width), role)
