"""The whole decoder: embedding, layers, final norm, head.

Parameter names are the checkpoint's (`checkpoint_name` maps the three that differ),
states come in and go out in `states.list_states` order.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from lfm2_deploy.config import Lfm2Config
from lfm2_deploy.model.layers import Attention, RMSNorm, ShortConv, SwiGLU
from lfm2_deploy.model.moe import SparseMoe
from lfm2_deploy.states import list_states


class DecoderLayer(nn.Module):
    """h += op(operator_norm(h)); h += ff(ffn_norm(h))."""

    def __init__(self, config: Lfm2Config, layer: int) -> None:
        super().__init__()
        self.operator_norm = RMSNorm(config.hidden_size, config.norm_eps)
        self.ffn_norm = RMSNorm(config.hidden_size, config.norm_eps)
        self.is_attention = config.layer_types[layer] == "full_attention"
        if self.is_attention:
            self.self_attn = Attention(config)
        else:
            self.conv = ShortConv(config)
        self.feed_forward: nn.Module
        if config.is_moe_layer(layer) and config.moe:
            self.feed_forward = SparseMoe(config.hidden_size, config.moe)
        else:
            self.feed_forward = SwiGLU(config.hidden_size, config.intermediate_size)

    def forward(
        self, x: Tensor, states: Sequence[Tensor], past_lengths: Tensor, new_lengths: Tensor
    ) -> tuple[Tensor, tuple[Tensor, ...]]:
        """x [B,S,H], this layer's states, lengths [B] -> y [B,S,H], new states."""
        mixed, present = self.mix(x, states, past_lengths, new_lengths)
        x = x + mixed
        return x + self.feed_forward(self.ffn_norm(x)), present

    def mix(
        self, x: Tensor, states: Sequence[Tensor], past_lengths: Tensor, new_lengths: Tensor
    ) -> tuple[Tensor, tuple[Tensor, ...]]:
        """The layer's first half, without its residual: what is added to x, and new states."""
        normed = self.operator_norm(x)
        if self.is_attention:
            mixed, *present = self.self_attn(normed, *states, past_lengths, new_lengths)
        else:
            mixed, *present = self.conv(normed, *states, new_lengths)
        return mixed, tuple(present)


class Decoder(nn.Module):
    """The LFM2 language model."""

    def __init__(self, config: Lfm2Config) -> None:
        super().__init__()
        self.config = config
        self.embed_tokens = nn.Embedding(config.vocab_size, config.hidden_size)
        self.layers = nn.ModuleList(
            DecoderLayer(config, i) for i in range(config.num_hidden_layers)
        )
        self.embedding_norm = RMSNorm(config.hidden_size, config.norm_eps)
        self.lm_head = nn.Linear(config.hidden_size, config.vocab_size, bias=False)
        if config.tie_word_embeddings:
            self.lm_head.weight = self.embed_tokens.weight

    def forward(
        self,
        input_ids: Tensor,
        states: Sequence[Tensor],
        past_lengths: Tensor,
        new_lengths: Tensor,
    ) -> tuple[Tensor, tuple[Tensor, ...]]:
        """One call of any length.

        Args:
            input_ids: int64 [B, S], right-padded (padding may hold any valid id).
            states: as `states.list_states` orders them.
            past_lengths: int64 [B], tokens already in each row's states.
            new_lengths: int64 [B], real tokens among each row's S.

        Returns:
            logits float32 [B, S, V] and the new states.
        """
        x, remaining, present = self.embed_tokens(input_ids), list(states), []
        for layer in self.layers:
            assert isinstance(layer, DecoderLayer)
            count = 2 if layer.is_attention else 1
            own, remaining = remaining[:count], remaining[count:]
            x, new = layer(x, own, past_lengths, new_lengths)
            present += new
        return self.lm_head(self.embedding_norm(x)).float(), tuple(present)


def empty_states(config: Lfm2Config, batch_size: int, capacity: int) -> list[Tensor]:
    """Zeroed states for a fresh start, in `states.list_states` order."""
    return [torch.zeros(s.concrete_shape(batch_size, capacity)) for s in list_states(config)]


def checkpoint_name(parameter: str) -> str:
    """A `Decoder` parameter's name -> the tensor's name in an LFM2 checkpoint."""
    name = parameter.replace(".self_attn.core.", ".self_attn.").replace(".router.", ".")
    return name if name.startswith("lm_head.") else f"model.{name}"
