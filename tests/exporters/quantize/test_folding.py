"""Scaling channels changes no output of the float model, and pays where inputs differ in size."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from exporters.quantize.folding import FoldedCheckpoint, choose_scales
from exporters.quantize.grid import Grid
from exporters.quantize.plan import plan_tensors
from exporters.quantize.scaling import LayerScaler
from lfm2_deploy.checkpoint import open_checkpoint
from lfm2_deploy.contracts import Checkpoint
from lfm2_deploy.model.streaming import StreamedDecoder, pad_rows, stream_hidden
from lfm2_deploy.weights import list_weights

ROWS = [[1, *range(row, 40 * (row + 1), row + 1)][:32] for row in range(2)]


def run(checkpoint: Checkpoint) -> tuple[Tensor, Tensor]:
    """The last layer's output and the logits."""
    decoder = StreamedDecoder(checkpoint)
    for _, hidden, _ in stream_hidden(decoder, ROWS):
        x = hidden
    return x, decoder.read_head()(x)


@pytest.mark.parametrize("model", ["synthetic:tiny-dense", "synthetic:tiny-moe"])
def test_scaled_checkpoint_computes_the_same(model: str) -> None:
    checkpoint = open_checkpoint(model)
    plan = plan_tensors(list_weights(checkpoint.config), "int4")
    folded = FoldedCheckpoint(checkpoint)
    decoder = StreamedDecoder(checkpoint)
    hidden = decoder.embed(pad_rows(ROWS)[0]).clone()
    for number in range(checkpoint.config.num_hidden_layers):
        scaler = LayerScaler(folded, plan, number)
        scaler.scale(hidden)
        for name in plan:
            if name.startswith(f"model.layers.{number}.") and name.endswith("experts.1.w2.weight"):
                width = checkpoint.read(name).shape[1]
                scaler.scale_down(name.removesuffix(".w2.weight"), spread(40, width))
    scaled = sum(
        not torch.equal(
            torch.from_numpy(folded.read(name)), torch.from_numpy(checkpoint.read(name))
        )
        for name in plan
    )
    assert scaled > 2 * checkpoint.config.num_hidden_layers  # it did scale
    for exact, same in zip(run(checkpoint), run(folded), strict=True):
        # Scales are rounded to float32 on both sides of each product.
        torch.testing.assert_close(same, exact, rtol=0, atol=2e-5 * float(exact.abs().max()))


def spread(tokens: int, width: int) -> Tensor:
    """Inputs some of whose channels are large."""
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(tokens, width, generator=generator)
    x[:, :3] *= 30
    return x


def test_large_inputs_get_large_scales_and_a_smaller_error() -> None:
    generator = torch.Generator().manual_seed(1)
    weight, x = torch.randn(64, 64, generator=generator), spread(200, 64)
    scales = choose_scales([weight], x, Grid(4, 64))
    assert float(scales[:3].min()) > 2 * float(scales[3:].max())


def test_inputs_of_one_size_are_not_scaled() -> None:
    x = torch.ones(8, 64)
    assert choose_scales([torch.eye(64)], x, Grid(4, 64)).tolist() == [1] * 64


def test_query_heads_that_share_values_share_scales() -> None:
    weight, x = torch.randn(32, 64, generator=torch.Generator().manual_seed(2)), spread(100, 64)
    scales = choose_scales([weight], x, Grid(4, 32), heads=(2, 2)).reshape(2, 2, 16)
    assert torch.equal(scales[:, 0], scales[:, 1])
    assert not torch.equal(scales[0], scales[1])
