"""The dense building blocks: RMSNorm, short convolution, attention, SwiGLU.

Every block is (x, state) -> (y, state), with sizes B batch, S new tokens, T cache
capacity, H hidden, N heads, D head dim, L conv width. Rows are right-padded:
`past_lengths[b]` tokens are already in row b's state and `new_lengths[b]` of its
S new ones are real. Padding never reaches a state.

`RMSNorm`, `CausalConv` and `CachedAttention` are the primitives that a target may
replace by an operator of its own; see `exporters/trace.py`.

Source: transformers 5.24, models/lfm2/modeling_lfm2.py.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from lfm2_deploy.config import Lfm2Config


class RMSNorm(nn.Module):
    """Root-mean-square norm over the last axis, computed in float32."""

    def __init__(self, size: int, eps: float) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(size))
        self.eps = eps

    def forward(self, x: Tensor) -> Tensor:
        """[..., size] -> [..., size], in x's dtype."""
        wide = x.float()
        scale = torch.rsqrt(wide.pow(2).mean(-1, keepdim=True) + self.eps)
        return self.weight * (wide * scale).to(x.dtype)


class CausalConv(nn.Module):
    """Depthwise causal convolution whose state is its last L-1 input columns."""

    def __init__(self, channels: int, width: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(channels, 1, width))

    def forward(self, x: Tensor, past: Tensor, new_lengths: Tensor) -> tuple[Tensor, Tensor]:
        """x [B, S, H], past [B, H, L-1], new_lengths [B] -> y [B, S, H], present [B, H, L-1]."""
        columns = torch.cat([past, x.transpose(1, 2)], dim=2)
        y = F.conv1d(columns, self.weight, groups=self.weight.shape[0]).transpose(1, 2)
        # The L-1 columns that end at each row's last real token.
        index = new_lengths[:, None, None] + torch.arange(past.shape[2], device=x.device)
        present = columns.gather(2, index.expand(-1, columns.shape[1], -1))
        return y, present


class ShortConv(nn.Module):
    """LFM2's gated short convolution."""

    def __init__(self, config: Lfm2Config) -> None:
        super().__init__()
        hidden = config.hidden_size
        self.in_proj = nn.Linear(hidden, 3 * hidden, bias=False)
        self.conv = CausalConv(hidden, config.conv_L_cache)
        self.out_proj = nn.Linear(hidden, hidden, bias=False)

    def forward(self, x: Tensor, past: Tensor, new_lengths: Tensor) -> tuple[Tensor, Tensor]:
        """x [B, S, H], past [B, H, L-1], new_lengths [B] -> y [B, S, H], present [B, H, L-1]."""
        gate_in, gate_out, value = self.in_proj(x).chunk(3, dim=-1)
        mixed, present = self.conv(gate_in * value, past, new_lengths)
        return self.out_proj(gate_out * mixed), present


def rotate_half(x: Tensor) -> Tensor:
    """(x1, x2) -> (-x2, x1) over halves of the last axis."""
    low, high = x.chunk(2, dim=-1)
    return torch.cat([-high, low], dim=-1)


def apply_rope(x: Tensor, positions: Tensor, theta: float) -> Tensor:
    """Rotate-half RoPE. x [B, N, S, D], positions [B, S] -> [B, N, S, D]."""
    size = x.shape[-1]
    exponents = torch.arange(0, size, 2, device=x.device).float() / size
    angles = positions[:, None, :, None].float() * (1.0 / theta**exponents)
    cos, sin = (torch.cat([f, f], dim=-1) for f in (angles.cos(), angles.sin()))
    return (x.float() * cos + rotate_half(x.float()) * sin).to(x.dtype)


class CachedAttention(nn.Module):
    """Grouped-query attention with per-head RMSNorm, RoPE and a key/value buffer.

    The buffer holds T rows; new rows are written at each row's own length, and a
    query sees the rows up to its own position. The cached keys are post-RoPE.
    """

    def __init__(self, config: Lfm2Config) -> None:
        super().__init__()
        self.num_heads, self.kv_heads = config.num_attention_heads, config.num_key_value_heads
        self.head_dim, self.rope_theta = config.head_dim, config.rope_theta
        self.q_layernorm = RMSNorm(config.head_dim, config.norm_eps)
        self.k_layernorm = RMSNorm(config.head_dim, config.norm_eps)

    def forward(
        self,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        past_key: Tensor,
        past_value: Tensor,
        past_lengths: Tensor,
        new_lengths: Tensor,
    ) -> tuple[Tensor, Tensor, Tensor]:
        """query [B,S,N*D], key and value [B,S,KV*D], past_* [B,KV,T,D], lengths [B]
        -> y [B,S,N*D], present_key and present_value [B,KV,T,D]."""
        steps = torch.arange(query.shape[1], device=query.device)
        positions = past_lengths[:, None] + steps
        q = apply_rope(self.q_layernorm(self._heads(query)), positions, self.rope_theta)
        k = apply_rope(self.k_layernorm(self._heads(key)), positions, self.rope_theta)
        real = steps < new_lengths[:, None]
        present_key = _write_rows(past_key, k, positions, real)
        present_value = _write_rows(past_value, self._heads(value), positions, real)
        slots = torch.arange(past_key.shape[2], device=query.device)
        visible = slots <= positions[:, None, :, None]
        y = F.scaled_dot_product_attention(
            q, present_key, present_value, attn_mask=visible, enable_gqa=True
        )
        return y.transpose(1, 2).flatten(2), present_key, present_value

    def _heads(self, x: Tensor) -> Tensor:
        return x.view(*x.shape[:-1], -1, self.head_dim).transpose(1, 2)


def _write_rows(buffer: Tensor, rows: Tensor, positions: Tensor, real: Tensor) -> Tensor:
    """buffer [B,KV,T,D] with rows [B,KV,S,D] put where `real` [B,S] at positions [B,S]."""
    batch, step = real.nonzero(as_tuple=True)
    written = buffer.clone()
    written[batch, :, positions[batch, step]] = rows.to(buffer.dtype)[batch, :, step]
    return written


class Attention(nn.Module):
    """LFM2's attention: projections around `CachedAttention`."""

    def __init__(self, config: Lfm2Config) -> None:
        super().__init__()
        hidden, head_dim = config.hidden_size, config.head_dim
        self.q_proj = nn.Linear(hidden, config.num_attention_heads * head_dim, bias=False)
        self.k_proj = nn.Linear(hidden, config.num_key_value_heads * head_dim, bias=False)
        self.v_proj = nn.Linear(hidden, config.num_key_value_heads * head_dim, bias=False)
        self.out_proj = nn.Linear(config.num_attention_heads * head_dim, hidden, bias=False)
        self.core = CachedAttention(config)

    def forward(
        self,
        x: Tensor,
        past_key: Tensor,
        past_value: Tensor,
        past_lengths: Tensor,
        new_lengths: Tensor,
    ) -> tuple[Tensor, Tensor, Tensor]:
        """x [B,S,H], past_* [B,KV,T,D], lengths [B] -> y [B,S,H], present_* [B,KV,T,D]."""
        q, k, v = self.q_proj(x), self.k_proj(x), self.v_proj(x)
        y, key, value = self.core(q, k, v, past_key, past_value, past_lengths, new_lengths)
        return self.out_proj(y), key, value


class SwiGLU(nn.Module):
    """w2(silu(w1 x) * w3 x)."""

    def __init__(self, hidden: int, width: int) -> None:
        super().__init__()
        self.w1 = nn.Linear(hidden, width, bias=False)
        self.w3 = nn.Linear(hidden, width, bias=False)
        self.w2 = nn.Linear(width, hidden, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """[..., H] -> [..., H]."""
        y: Tensor = self.w2(F.silu(self.w1(x)) * self.w3(x))
        return y
