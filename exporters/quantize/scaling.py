"""Which channels of a layer are scaled, found on a few of its rows in the exact model."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

import torch
from torch import Tensor

from exporters.quantize.folding import TRIED_TOKENS, FoldedCheckpoint, choose_scales
from exporters.quantize.grid import Grid
from exporters.quantize.plan import TensorPlan
from exporters.quantize.twin import Twin
from lfm2_deploy.config import Lfm2Config
from lfm2_deploy.model.moe import SparseMoe
from lfm2_deploy.model.streaming import StreamedDecoder

_ROWS = 4
# Of a mixture, whose experts' inputs must have one scale, so many experts are asked.
_ASKED_EXPERTS = 4


class LayerScaler:
    """Scales one layer's channels.

    Args:
        checkpoint: takes the scales.
        plan: how tensors will be stored.
        number: the layer.
    """

    def __init__(
        self, checkpoint: FoldedCheckpoint, plan: Mapping[str, TensorPlan], number: int
    ) -> None:
        self._checkpoint, self._plan = checkpoint, plan
        self._prefix = f"model.layers.{number}"
        self._number = number

    @torch.inference_mode()
    def scale(self, hidden: Tensor) -> None:
        """Scale all that every token meets.

        Args:
            hidden: float32 [B, S, H], the exact model's hidden states before the layer.
        """
        decoder, config = StreamedDecoder(self._checkpoint), self._checkpoint.config
        rows = hidden[:: max(1, len(hidden) // _ROWS)][:_ROWS].clone()
        twin = Twin(decoder, self._number, rows, rows.clone())
        self._scale_mixer(twin, config)
        twin.advance(twin.run_mixer)
        if twin.is_mixture:
            self._scale_experts(twin, config)
            return
        names = self._name("feed_forward", "w1", "w3")
        x = thin_out(x for x, *_ in twin.inputs_of("feed_forward.w1"))
        scales = self._choose(names, x)
        self._fold(names, scales, {f"{self._prefix}.ffn_norm.weight": 0})
        x = thin_out(x for x, *_ in twin.inputs_of("feed_forward.w2"))
        self.scale_down(f"{self._prefix}.feed_forward", x)

    def scale_down(self, block: str, x: Tensor) -> Tensor:
        """Scale what lies between w3 and w2 of a block; the scales [I].

        Args:
            block: its name.
            x: float32 [T, I], inputs of w2 in the exact model.
        """
        name = f"{block}.w2.weight"
        scales = self._choose([name], x)
        self._fold([name], scales, {f"{block}.w3.weight": 0})
        return scales

    def _scale_mixer(self, twin: Twin, config: Lfm2Config) -> None:
        mixer, heads = twin.mixer, (1, 1)
        inner = ("q_proj", "k_proj", "v_proj") if mixer == "self_attn" else ("in_proj",)
        names = self._name(mixer, *inner)
        x = thin_out(x for x, *_ in twin.inputs_of(f"{mixer}.{inner[0]}"))
        self._fold(names, self._choose(names, x), {f"{self._prefix}.operator_norm.weight": 0})
        (name,) = self._name(mixer, "out_proj")
        x = thin_out(x for x, *_ in twin.inputs_of(f"{mixer}.out_proj"))
        if mixer == "self_attn":
            kv = config.num_key_value_heads
            heads = kv, config.num_attention_heads // kv
        scales = self._choose([name], x, heads)
        self._checkpoint.fold(name, 1, scales)
        if mixer == "self_attn":
            own = scales.reshape(*heads, -1)[:, 0].flatten()
            self._checkpoint.fold(names[2], 0, 1 / own)
        else:
            ones = torch.ones(config.hidden_size)
            self._checkpoint.fold(names[0], 0, torch.cat([ones, 1 / scales, ones]))

    def _scale_experts(self, twin: Twin, config: Lfm2Config) -> None:
        feed = twin.exact.feed_forward
        assert isinstance(feed, SparseMoe)
        assert config.moe is not None
        count = config.moe.num_experts
        block = f"{self._prefix}.feed_forward"
        asked = range(0, count, max(1, count // _ASKED_EXPERTS))
        names = [f"{block}.experts.{e}.{w}.weight" for e in asked for w in ("w1", "w3")]
        x = thin_out([twin.exact.ffn_norm(twin.x).flatten(0, -2)])
        scales = self._choose(names, x)
        every = [f"{block}.experts.{e}.{w}.weight" for e in range(count) for w in ("w1", "w3")]
        norm = f"{self._prefix}.ffn_norm.weight"
        self._fold([*every, f"{block}.gate.weight"], scales, {norm: 0})

    def _choose(self, names: Sequence[str], x: Tensor, heads: tuple[int, int] = (1, 1)) -> Tensor:
        names = [name for name in names if self._plan[name].is_quantized]
        if not names:
            return torch.ones(x.shape[1])
        weights = [torch.from_numpy(self._checkpoint.read(name)) for name in names]
        return choose_scales(weights, x, Grid.of(self._plan[names[0]]), heads)

    def _fold(self, names: Iterable[str], scales: Tensor, makers: Mapping[str, int]) -> None:
        """Columns times the scales, and what makes their inputs divided by them."""
        for name in names:
            self._checkpoint.fold(name, 1, scales)
        for name, axis in makers.items():
            self._checkpoint.fold(name, axis, 1 / scales)

    def _name(self, module: str, *leaves: str) -> list[str]:
        return [f"{self._prefix}.{module}.{leaf}.weight" for leaf in leaves]


def thin_out(pieces: Iterable[Tensor]) -> Tensor:
    """Some tokens [T, K], spread over all."""
    x = torch.cat(list(pieces))
    return x[:: max(1, len(x) // TRIED_TOKENS)][:TRIED_TOKENS]
