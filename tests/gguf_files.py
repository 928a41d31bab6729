"""GGUF files as llama.cpp's converter and quantizer write them, made of tiny checkpoints."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import gguf
import numpy as np
from gguf import GGMLQuantizationType as Kind

from lfm2_deploy.contracts import Checkpoint, FloatArray

# llama.cpp's names, written out: what the reader is held to must not be its own table.
_IN_CONV = {
    "in_proj": "shortconv.in_proj",
    "conv": "shortconv.conv",
    "out_proj": "shortconv.out_proj",
}
_IN_ATTENTION = {
    "q_proj": "attn_q", "k_proj": "attn_k", "v_proj": "attn_v", "out_proj": "attn_output",
    "q_layernorm": "attn_q_norm", "k_layernorm": "attn_k_norm",
}  # fmt: skip
_FORWARD = {"w1": "ffn_gate", "w2": "ffn_down", "w3": "ffn_up"}


def quantize(array: FloatArray, kind: str) -> Any:
    """As the gguf package does; IQ4_NL, which it only reads, by random integers."""
    if kind != "IQ4_NL":
        return gguf.quants.quantize(array, Kind[kind])
    rng = np.random.default_rng(array.size)
    blocks = rng.integers(0, 256, (array.size // 32, 18), np.uint8)
    blocks[:, :2] = rng.uniform(-2, 2, len(blocks)).astype(np.float16).view(np.uint8).reshape(-1, 2)
    return blocks.reshape(*array.shape[:-1], -1)


def list_tensors(checkpoint: Checkpoint) -> dict[str, FloatArray]:
    """GGUF's names -> arrays in GGUF's shapes."""
    config, found = checkpoint.config, {}
    found["token_embd.weight"] = checkpoint.read("model.embed_tokens.weight")
    found["token_embd_norm.weight"] = checkpoint.read("model.embedding_norm.weight")
    for layer, kind in enumerate(config.layer_types):
        ours, theirs = f"model.layers.{layer}", f"blk.{layer}"
        found[f"{theirs}.attn_norm.weight"] = checkpoint.read(f"{ours}.operator_norm.weight")
        found[f"{theirs}.ffn_norm.weight"] = checkpoint.read(f"{ours}.ffn_norm.weight")
        part, names = ("conv", _IN_CONV) if kind == "conv" else ("self_attn", _IN_ATTENTION)
        for own, name in names.items():
            array = checkpoint.read(f"{ours}.{part}.{own}.weight")
            found[f"{theirs}.{name}.weight"] = array[:, 0] if own == "conv" else array
        forward = f"{ours}.feed_forward"
        if not config.is_moe_layer(layer):
            for own, name in _FORWARD.items():
                found[f"{theirs}.{name}.weight"] = checkpoint.read(f"{forward}.{own}.weight")
            continue
        assert config.moe is not None
        found[f"{theirs}.ffn_gate_inp.weight"] = checkpoint.read(f"{forward}.gate.weight")
        found[f"{theirs}.exp_probs_b.bias"] = checkpoint.read(f"{forward}.expert_bias")
        for own, name in _FORWARD.items():
            experts = range(config.moe.num_experts)
            stacked = [checkpoint.read(f"{forward}.experts.{e}.{own}.weight") for e in experts]
            found[f"{theirs}.{name}_exps.weight"] = np.stack(stacked)
    return found


def list_metadata(checkpoint: Checkpoint) -> dict[str, Any]:
    """The keys that conversion/lfm2.py of llama.cpp writes, and the experts' scale."""
    config, moe = checkpoint.config, checkpoint.config.moe
    kinds = config.layer_types
    found: dict[str, Any] = {
        "block_count": len(kinds),
        "context_length": config.max_position_embeddings,
        "embedding_length": config.hidden_size,
        "feed_forward_length": config.intermediate_size,
        "attention.head_count": config.num_attention_heads,
        "attention.head_count_kv": [
            config.num_key_value_heads if kind == "full_attention" else 0 for kind in kinds
        ],
        "rope.freq_base": config.rope_theta,
        "attention.layer_norm_rms_epsilon": config.norm_eps,
        "vocab_size": config.vocab_size,
        "shortconv.l_cache": config.conv_L_cache,
    }
    if moe is not None:
        found |= {
            "expert_count": moe.num_experts,
            "expert_used_count": moe.num_experts_per_tok,
            "expert_feed_forward_length": moe.moe_intermediate_size,
            "leading_dense_block_count": moe.num_dense_layers,
            "expert_gating_func": 2,
            "expert_weights_scale": moe.routed_scaling_factor,
        }
    arch = "lfm2" if moe is None else "lfm2moe"
    tokens = {
        "bos": config.bos_token_id, "eos": config.eos_token_ids[0], "padding": config.pad_token_id
    }  # fmt: skip
    return {f"{arch}.{key}": value for key, value in found.items()} | {
        f"tokenizer.ggml.{role}_token_id": token for role, token in tokens.items()
    }


def list_tokenizer(file: Path, vocab_size: int, rule: str) -> dict[str, Any]:
    """A tokenizer.json as metadata hold it; ids that are no tokens fill the vocabulary up."""
    raw = json.loads(file.read_text("utf-8"))
    texts = {number: token for token, number in raw["model"]["vocab"].items()}
    added = {token["id"]: token for token in raw["added_tokens"]}
    kinds = [5 if i not in texts else 1 for i in range(vocab_size)]
    for number, token in added.items():
        texts[number], kinds[number] = token["content"], 3 if token["special"] else 4
    merges = raw["model"]["merges"]
    return {
        "tokenizer.ggml.model": "gpt2",
        "tokenizer.ggml.pre": rule,
        "tokenizer.ggml.tokens": [texts.get(i, f"[PAD{i}]") for i in range(vocab_size)],
        "tokenizer.ggml.token_type": kinds,
        "tokenizer.ggml.merges": [m if isinstance(m, str) else " ".join(m) for m in merges],
        "tokenizer.ggml.add_bos_token": True,
    }


def write_gguf(
    checkpoint: Checkpoint,
    out: Path,
    kind: str | Callable[[str], str] = "F32",
    metadata: Mapping[str, Any] | None = None,
    change: Callable[[dict[str, FloatArray]], None] | None = None,
    architecture: str | None = None,
) -> Path:
    """Write a checkpoint.

    Args:
        checkpoint: the weights.
        out: the file to make.
        kind: the type of matrices, or what chooses it by name; vectors, routers and convolutions
            are F32, as llama.cpp has them.
        metadata: further keys, or others' values; None removes one.
        change: changes the tensors before they are written.
        architecture: another one's name.
    """
    name = architecture or ("lfm2" if checkpoint.config.moe is None else "lfm2moe")
    writer = gguf.GGUFWriter(str(out), name)
    for key, value in {**list_metadata(checkpoint), **(metadata or {})}.items():
        _add(writer, key, value)
    tensors = list_tensors(checkpoint)
    if change is not None:
        change(tensors)
    for tensor, array in tensors.items():
        plain = array.ndim == 1 or "shortconv.conv." in tensor or "ffn_gate_inp" in tensor
        chosen = "F32" if plain else kind if isinstance(kind, str) else kind(tensor)
        writer.add_tensor(tensor, quantize(array, chosen), raw_dtype=Kind[chosen])
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return out


def _add(writer: gguf.GGUFWriter, key: str, value: Any) -> None:
    match value:
        case None:
            pass
        case bool():
            writer.add_bool(key, value)
        case int():
            writer.add_uint32(key, value)
        case float():
            writer.add_float32(key, value)
        case str():
            writer.add_string(key, value)
        case _:
            writer.add_array(key, value)
