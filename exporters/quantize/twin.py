"""One layer twice, exact and as it is rounded so far, over the same tokens.

Enters: a layer and both models' hidden states before it. Leaves: the inputs that any of its
matrices has in both, a piece of tokens at a time, and hidden states after it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

import torch
from torch import Tensor, nn

from lfm2_deploy.config import Lfm2Config
from lfm2_deploy.model.decoder import DecoderLayer
from lfm2_deploy.model.moe import SparseMoe
from lfm2_deploy.model.streaming import StreamedDecoder

# Attention's scores and a feed-forward block's inner width are kept for so many at once.
_ROWS_AT_ONCE = 4
TOKENS_AT_ONCE = 2048

Half = Callable[[DecoderLayer, Tensor], Tensor]


class _CapturedError(Exception):
    """What a module was called with."""

    def __init__(self, value: Tensor) -> None:
        super().__init__()
        self.value = value


class Twin:
    """A layer in both models.

    Args:
        decoder: reads layers.
        number: which layer.
        exact, rounded: float32 [B, S, H], hidden states before the layer; overwritten with
            those after its halves as they are run.
    """

    def __init__(self, decoder: StreamedDecoder, number: int, exact: Tensor, rounded: Tensor):
        self._decoder, self.number = decoder, number
        self.exact = decoder.read_layer(number)
        self.rounded = _share(self.exact, decoder.config, number)
        self.x, self.y = exact, rounded

    @property
    def is_mixture(self) -> bool:
        """Whether its feed-forward half is a mixture of experts."""
        return isinstance(self.exact.feed_forward, SparseMoe)

    @property
    def mixer(self) -> str:
        """The first half's module."""
        return "self_attn" if self.exact.is_attention else "conv"

    def find(self, module: str) -> tuple[nn.Linear, nn.Linear]:
        """A projection in both."""
        exact, rounded = self.exact.get_submodule(module), self.rounded.get_submodule(module)
        assert isinstance(exact, nn.Linear)
        assert isinstance(rounded, nn.Linear)
        return exact, rounded

    def inputs_of(self, module: str) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
        """What a projection is called with: exact [T, K], rounded [T, K], and what the residual
        stream of these tokens has lost, [T, H]."""
        half = self.run_mixer if module.startswith(self.mixer) else run_feed_forward
        exact, rounded = self.find(module)
        for x, y in self._pieces(half):
            with torch.inference_mode():
                yield (
                    _capture(exact, half, self.exact, x).flatten(0, -2),
                    _capture(rounded, half, self.rounded, y).flatten(0, -2),
                    (x - y).flatten(0, -2),
                )

    def advance(self, half: Half) -> None:
        """Run a half in both, and add what it gives to the hidden states."""
        for x, y in self._pieces(half):
            with torch.inference_mode():
                x += half(self.exact, x)
                y += half(self.rounded, y)

    def run_mixer(self, layer: DecoderLayer, x: Tensor) -> Tensor:
        """The first half, without its residual: [B, S, H] -> [B, S, H]."""
        rows, steps = x.shape[:2]
        empty = self._decoder.empty_states(self.number, rows, steps)
        past = torch.zeros(rows, dtype=torch.long)
        mixed, _ = layer.mix(x, empty, past, torch.full((rows,), steps))
        return mixed

    def _pieces(self, half: Half) -> Iterator[tuple[Tensor, Tensor]]:
        if half == self.run_mixer:
            pieces = (torch.split(z, _ROWS_AT_ONCE) for z in (self.x, self.y))
        else:
            flat = (z.view(-1, z.shape[-1]) for z in (self.x, self.y))
            pieces = (torch.split(z, TOKENS_AT_ONCE) for z in flat)
        yield from zip(*pieces, strict=True)


def run_feed_forward(layer: DecoderLayer, x: Tensor) -> Tensor:
    """A dense second half, without its residual: [T, H] -> [T, H]."""
    y: Tensor = layer.feed_forward(layer.ffn_norm(x))
    return y


def _share(layer: DecoderLayer, config: Lfm2Config, number: int) -> DecoderLayer:
    """The same layer again, whose weights can be replaced one by one."""
    with torch.device("meta"):
        other = DecoderLayer(config, number).eval()
    if isinstance(layer.feed_forward, SparseMoe):
        assert isinstance(other.feed_forward, SparseMoe)
        other.feed_forward.experts = layer.feed_forward.experts
    other.load_state_dict(layer.state_dict(), assign=True)
    return other


def _capture(module: nn.Module, half: Half, layer: DecoderLayer, x: Tensor) -> Tensor:
    """What `module` is called with while a half of its layer runs; the rest is not run."""

    def stop(_: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        raise _CapturedError(inputs[0])

    handle = module.register_forward_pre_hook(stop)
    try:
        half(layer, x)
    except _CapturedError as caught:
        return caught.value
    finally:
        handle.remove()
    raise AssertionError("the module is not part of that half")
