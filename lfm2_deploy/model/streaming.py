"""A checkpoint run layer by layer, for models that memory does not hold.

Enters: a checkpoint and rows of token ids, each from an empty state. Leaves: hidden states
after any layer, each layer's own states, and logits. Memory holds the hidden states of all
rows, one mixer or dense feed-forward block, and one expert at a time; each weight is read
once for all rows. The arithmetic is that of `decoder.py`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

import torch
from torch import Tensor, nn

from lfm2_deploy.config import Lfm2Config
from lfm2_deploy.contracts import Checkpoint
from lfm2_deploy.model.decoder import DecoderLayer, checkpoint_name
from lfm2_deploy.model.layers import RMSNorm, SwiGLU
from lfm2_deploy.model.moe import Experts, SparseMoe
from lfm2_deploy.states import list_states
from lfm2_deploy.weights import EMBEDDING, FINAL_NORM, HEAD

# Attention's scores and a feed-forward block's inner width are kept for so many at once: 64
# rows of 512 tokens through a width of 11,776 would be 1.5 GB.
_ROWS_AT_ONCE = 4
_TOKENS_AT_ONCE = 2048


class StreamedDecoder:
    """LFM2, one layer in memory at a time.

    Args:
        checkpoint: the weights; each layer's are read whenever it is asked for.
    """

    def __init__(self, checkpoint: Checkpoint) -> None:
        self.checkpoint = checkpoint
        self.config: Lfm2Config = checkpoint.config

    @torch.inference_mode()
    def embed(self, ids: Tensor) -> Tensor:
        """int64 [B, S] -> hidden states float32 [B, S, H]."""
        table = torch.from_numpy(self.checkpoint.read(EMBEDDING))
        return table[ids]

    def read_layer(self, number: int) -> DecoderLayer:
        """A layer with its weights; experts are read when they run, and not kept."""
        with torch.device("meta"):
            layer = DecoderLayer(self.config, number).eval()
        prefix = f"layers.{number}"
        if isinstance(layer.feed_forward, SparseMoe):
            layer.feed_forward.experts = StreamedExperts(self.checkpoint, number)
        fill_module(layer, prefix, self.checkpoint)
        return layer

    @torch.inference_mode()
    def run_layer(
        self, number: int, x: Tensor, lengths: Tensor, layer: DecoderLayer | None = None
    ) -> tuple[Tensor, ...]:
        """Run one layer over all rows, each from an empty state.

        Args:
            number: which layer.
            x: float32 [B, S, H], the layer's input; overwritten with its output.
            lengths: int64 [B], real tokens of each right-padded row.
            layer: the layer, where the caller has read (or changed) it already.

        Returns:
            The layer's states after each row, as `states.list_states` orders them: conv
            [B, H, L-1], or keys and values [B, KV, S, D].
        """
        layer = layer or self.read_layer(number)
        states = self.run_mixer(number, layer, x, lengths)
        self.run_feed_forward(layer, x)
        return states

    @torch.inference_mode()
    def run_mixer(
        self, number: int, layer: DecoderLayer, x: Tensor, lengths: Tensor
    ) -> tuple[Tensor, ...]:
        """The first half of a layer; as `run_layer`."""
        present: list[tuple[Tensor, ...]] = []
        for start in range(0, len(x), _ROWS_AT_ONCE):
            piece = slice(start, start + _ROWS_AT_ONCE)
            empty = self.empty_states(number, len(x[piece]), x.shape[1])
            past = torch.zeros_like(lengths[piece])
            mixed, states = layer.mix(x[piece], empty, past, lengths[piece])
            x[piece] += mixed
            present.append(states)
        return tuple(torch.cat(parts) for parts in zip(*present, strict=True))

    @torch.inference_mode()
    def run_feed_forward(self, layer: DecoderLayer, x: Tensor) -> None:
        """The second half of a layer: x float32 [B, S, H] is overwritten with its output."""
        flat = x.view(-1, x.shape[-1])
        if isinstance(layer.feed_forward, SparseMoe):
            # All tokens at once, so that each expert is read once.
            flat += layer.feed_forward(layer.ffn_norm(flat))
            return
        for start in range(0, len(flat), _TOKENS_AT_ONCE):
            piece = flat[start : start + _TOKENS_AT_ONCE]
            piece += layer.feed_forward(layer.ffn_norm(piece))

    def empty_states(self, number: int, rows: int, capacity: int) -> list[Tensor]:
        """One layer's zeroed states."""
        own = [s for s in list_states(self.config) if s.layer == number]
        return [torch.zeros(s.concrete_shape(rows, capacity)) for s in own]

    @torch.inference_mode()
    def read_head(self) -> Callable[[Tensor], Tensor]:
        """What gives logits float32 [..., V] of the last layer's output [..., H]."""
        norm = RMSNorm(self.config.hidden_size, self.config.norm_eps)
        norm.weight.copy_(torch.from_numpy(self.checkpoint.read(FINAL_NORM)))
        name = EMBEDDING if self.config.tie_word_embeddings else HEAD
        weight = torch.from_numpy(self.checkpoint.read(name))

        def head(x: Tensor) -> Tensor:
            with torch.inference_mode():
                return nn.functional.linear(norm(x), weight)

        return head


class StreamedExperts(Experts):
    """A layer's experts, each read from the checkpoint when tokens have chosen it."""

    def __init__(self, checkpoint: Checkpoint, layer: int) -> None:
        nn.ModuleList.__init__(self)
        config = checkpoint.config
        assert config.moe is not None
        self.checkpoint, self.layer, self.moe = checkpoint, layer, config.moe

    def expert(self, number: int) -> nn.Module:
        """Read expert `number`."""
        assert self.checkpoint.config.moe is not None
        with torch.device("meta"):
            expert = SwiGLU(
                self.checkpoint.config.hidden_size,
                self.checkpoint.config.moe.moe_intermediate_size,
            )
        prefix = f"layers.{self.layer}.feed_forward.experts.{number}"
        fill_module(expert, prefix, self.checkpoint)
        return InPieces(expert.eval())


class InPieces(nn.Module):
    """A module of independent tokens, called with a bounded number of them at a time."""

    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner = inner

    def forward(self, x: Tensor) -> Tensor:
        """[N, H] -> [N, H]."""
        return torch.cat([self.inner(part) for part in torch.split(x, _TOKENS_AT_ONCE)])


def fill_module(module: nn.Module, prefix: str, checkpoint: Checkpoint) -> None:
    """Read every parameter of a module that lies at `prefix` of a `Decoder`.

    Raises:
        CheckpointError: a tensor cannot be read.
    """
    for name, parameter in list(module.named_parameters()):
        tensor = torch.from_numpy(checkpoint.read(checkpoint_name(f"{prefix}.{name}")))
        owner_name, _, leaf = name.rpartition(".")
        value = nn.Parameter(tensor.view(parameter.shape), requires_grad=False)
        setattr(module.get_submodule(owner_name), leaf, value)


def pad_rows(rows: Sequence[Sequence[int]]) -> tuple[Tensor, Tensor]:
    """Rows of ids -> int64 [B, S], right-padded with 0, and their lengths int64 [B]."""
    width = max(len(row) for row in rows)
    ids = torch.tensor([[*row, *[0] * (width - len(row))] for row in rows])
    return ids, torch.tensor([len(row) for row in rows])


def stream_hidden(
    decoder: StreamedDecoder, rows: Sequence[Sequence[int]]
) -> Iterator[tuple[int, Tensor, tuple[Tensor, ...]]]:
    """Run all layers in order.

    Yields:
        Layer number, its output [B, S, H] (overwritten by the next layer), and its states.
    """
    ids, lengths = pad_rows(rows)
    x = decoder.embed(ids)
    for number in range(decoder.config.num_hidden_layers):
        yield number, x, decoder.run_layer(number, x, lengths)
