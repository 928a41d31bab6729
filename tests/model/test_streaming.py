"""A checkpoint run layer by layer gives what the whole decoder gives."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch

from lfm2_deploy.checkpoint import open_checkpoint
from lfm2_deploy.contracts import Checkpoint
from lfm2_deploy.model.streaming import StreamedDecoder, StreamedExperts, stream_hidden
from lfm2_deploy.registry import find_runtime
from lfm2_deploy.states import list_states

# Sums over several rows at once may be taken in another order.
ROUNDING = 1e-5
ROWS = [[1, 5, 9, 200, 31], [1, 300, 2], [1, 8, 8, 8, 8], [1, 77], [1, 4, 400, 20, 11]]


@pytest.fixture(params=["synthetic:tiny-dense", "synthetic:tiny-moe"])
def checkpoint(request: pytest.FixtureRequest) -> Checkpoint:
    return open_checkpoint(request.param)


def test_ragged_rows_run_by_layer_give_the_decoders_logits(checkpoint: Checkpoint) -> None:
    session = find_runtime("reference")(checkpoint).open(len(ROWS), 8)
    expected = session.score(ROWS)
    decoder = StreamedDecoder(checkpoint)
    for _, x, _ in stream_hidden(decoder, ROWS):
        last = x
    head = decoder.read_head()
    for number, row in enumerate(ROWS):
        logits = head(last[number, : len(row)])
        torch.testing.assert_close(
            logits, torch.from_numpy(expected[number]), atol=ROUNDING, rtol=ROUNDING
        )


def test_states_of_each_layer_are_the_decoders(checkpoint: Checkpoint) -> None:
    session = find_runtime("reference")(checkpoint).open(len(ROWS), 5)
    session.score(ROWS)
    expected = session.snapshot().states
    found = [s for _, _, states in stream_hidden(StreamedDecoder(checkpoint), ROWS) for s in states]
    assert len(found) == len(list_states(checkpoint.config))
    for ours, theirs in zip(found, expected, strict=True):
        torch.testing.assert_close(ours, theirs, atol=ROUNDING, rtol=ROUNDING)


def test_experts_that_nobody_chose_are_not_read(monkeypatch: pytest.MonkeyPatch) -> None:
    checkpoint = open_checkpoint("synthetic:tiny-moe")
    read: list[int] = []
    real: Callable[[StreamedExperts, int], torch.nn.Module] = StreamedExperts.expert

    def count(self: StreamedExperts, number: int) -> torch.nn.Module:
        read.append(number)
        return real(self, number)

    monkeypatch.setattr(StreamedExperts, "expert", count)
    list(stream_hidden(StreamedDecoder(checkpoint), [[5]]))
    moe = checkpoint.config.moe
    assert moe is not None
    assert len(read) == moe.num_experts_per_tok * len(checkpoint.config.moe_layers)
