"""The torch reference, layer by layer: all rows at once, in memory that does not grow with depth.

Enters: a checkpoint and rows of token ids. Leaves: logits and states of each row. What it
computes is what `runtimes.reference` computes, for models that memory does not hold.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch

from lfm2_deploy.compare.scorer import Request, Scored
from lfm2_deploy.contracts import Checkpoint, FloatArray, Progress
from lfm2_deploy.model.streaming import StreamedDecoder, stream_hidden
from lfm2_deploy.states import list_states

VERSION = torch.__version__


class StreamedScorer:
    """`compare.scorer.Scorer` on a checkpoint.

    Args:
        checkpoint: each weight is read once for all rows of a call.
    """

    def __init__(self, checkpoint: Checkpoint) -> None:
        self.checkpoint, self.config = checkpoint, checkpoint.config

    def score(self, requests: Sequence[Request], progress: Progress) -> Iterator[Scored]:
        """Answer each request, in order.

        Raises:
            CheckpointError: a tensor cannot be read.
        """
        decoder, layers = StreamedDecoder(self.checkpoint), self.config.num_hidden_layers
        states: dict[int, dict[str, FloatArray]] = {
            number: {} for number, request in enumerate(requests) if request.states
        }
        progress("reading with torch", 0, layers)
        for layer, hidden, present in stream_hidden(
            decoder, [request.tokens for request in requests]
        ):
            x = hidden
            for number, found in states.items():
                found |= self._take(layer, present, number, len(requests[number].tokens))
            progress("reading with torch", layer + 1, layers)
        head = decoder.read_head()
        for number, request in enumerate(requests):
            progress("logits of the reference", number, len(requests))
            logits: FloatArray = head(x[number, request.first : len(request.tokens)]).numpy()
            yield Scored(logits, states.get(number))
        progress("logits of the reference", len(requests), len(requests))

    def _take(
        self, layer: int, present: Sequence[torch.Tensor], row: int, length: int
    ) -> dict[str, FloatArray]:
        """One row's states of a layer; keys and values cut to its length."""
        specs = [spec for spec in list_states(self.config) if spec.layer == layer]
        return {
            spec.input: (state[row] if spec.kind == "conv" else state[row, :, :length])
            .clone()
            .numpy()
            for spec, state in zip(specs, present, strict=True)
        }

    def close(self) -> None:
        """Nothing is held between calls."""
