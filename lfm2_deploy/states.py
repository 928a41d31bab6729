"""`Lfm2Config` -> the states a decoder carries from one call to the next.

This is the only place that names a state or gives its shape: exporters declare
graph inputs and outputs from it, runtimes allocate buffers from it, and the
manifest records it.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

from lfm2_deploy.config import Lfm2Config

StateKind = Literal["key", "value", "conv"]

BATCH, CAPACITY = "batch_size", "capacity"


@dataclass(frozen=True, slots=True)
class StateSpec:
    """One state tensor.

    Args:
        input: name of the graph input that brings the state in.
        output: name of the graph output that takes it out.
        kind: "key" or "value" (a buffer of `capacity` rows, written in place) or
            "conv" (the last L-1 columns of `B*x`).
        layer: layer number in the model.
        shape: dimensions; a string is symbolic.
        dtype: numpy name of the element type.
    """

    input: str
    output: str
    kind: StateKind
    layer: int
    shape: tuple[int | str, ...]
    dtype: str

    @property
    def window(self) -> str:
        """Of a conv state, the graph output from which it can be cut at any new token.

        float32 [B, L-1+S, H]: the past state and the S new columns of `B*x`, channels last.
        A graph may lack it; then tokens once appended cannot be taken back.
        """
        return f"window.{self.layer}.conv"

    def concrete_shape(self, batch_size: int, capacity: int) -> tuple[int, ...]:
        """The shape with its symbolic dimensions filled in."""
        sizes: Mapping[str, int] = {BATCH: batch_size, CAPACITY: capacity}
        return tuple(sizes[d] if isinstance(d, str) else d for d in self.shape)


def list_states(
    config: Lfm2Config, dtype: str = "float32", *, channels_last: bool = False
) -> tuple[StateSpec, ...]:
    """Every state of a model, in graph order: layer by layer, key before value.

    Names are those onnxruntime-genai 0.17 and later read; indices are layer numbers.

    Args:
        config: the model.
        dtype: numpy name of the states' element type.
        channels_last: whether conv states are [B, L-1, H] instead of [B, H, L-1].
    """
    states: list[StateSpec] = []
    for layer, kind in enumerate(config.layer_types):
        if kind == "conv":
            states += _conv_state(config, layer, dtype, channels_last)
        else:
            states += _kv(config, layer, dtype)
    return tuple(states)


def _conv_state(config: Lfm2Config, layer: int, dtype: str, channels_last: bool) -> list[StateSpec]:
    sizes = (config.hidden_size, config.conv_state_width)
    shape = (BATCH, *(reversed(sizes) if channels_last else sizes))
    return [StateSpec(f"past.{layer}.conv", f"present.{layer}.conv", "conv", layer, shape, dtype)]


def _kv(config: Lfm2Config, layer: int, dtype: str) -> list[StateSpec]:
    shape = (BATCH, config.num_key_value_heads, CAPACITY, config.head_dim)
    kinds: tuple[StateKind, ...] = ("key", "value")
    return [
        StateSpec(
            f"past_key_values.{layer}.{kind}", f"present.{layer}.{kind}", kind, layer, shape, dtype
        )
        for kind in kinds
    ]
