"""The torch decoder as a Runtime: slow, float32, and the truth others are compared with."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch

from lfm2_deploy.contracts import (
    Capabilities,
    Checkpoint,
    FloatArray,
    Progress,
    RuntimeInfo,
    Snapshot,
    ignore_progress,
)
from lfm2_deploy.errors import GenerationError
from lfm2_deploy.model.decoder import Decoder, checkpoint_name, empty_states
from lfm2_deploy.session_checks import check_rows, check_session, check_some_tokens


def load(checkpoint: Checkpoint, progress: Progress = ignore_progress) -> ReferenceRuntime:
    """Load every weight of a checkpoint, as float32.

    Args:
        checkpoint: its tensors are read once each.
        progress: told of each tensor.
    """
    with torch.device("meta"):
        model = Decoder(checkpoint.config).eval()
    names = dict(model.named_parameters())
    for done, (name, parameter) in enumerate(names.items(), 1):
        progress("loading the reference", done, len(names))
        tensor = torch.from_numpy(checkpoint.read(checkpoint_name(name)))
        owner = model.get_submodule(name.rpartition(".")[0])
        leaf = name.rpartition(".")[2]
        setattr(owner, leaf, torch.nn.Parameter(tensor.view(parameter.shape), requires_grad=False))
    if checkpoint.config.tie_word_embeddings:
        model.lm_head.weight = model.embed_tokens.weight
    return ReferenceRuntime(model)


class ReferenceRuntime:
    """`contracts.Runtime` on the torch decoder."""

    def __init__(self, model: Decoder) -> None:
        self.model, self.config = model, model.config
        self.context_length = model.config.max_position_embeddings
        self.info = RuntimeInfo("reference", "cpu (torch)", Capabilities(True, True, 0, True))

    def open(self, batch_size: int = 1, capacity: int | None = None) -> ReferenceSession:
        """A fresh session; see `contracts.Runtime.open`."""
        capacity = check_session(batch_size, capacity, self.context_length)
        return ReferenceSession(self.model, batch_size, capacity)

    def close(self) -> None:
        """See `contracts.Runtime.close`; the weights go with the last session."""


@dataclass(frozen=True, slots=True)
class ReferenceSnapshot:
    """States are never written in place, so holding them is copying them."""

    lengths: tuple[int, ...]
    states: tuple[torch.Tensor, ...]

    @property
    def size_bytes(self) -> int:
        """Memory it holds."""
        return sum(s.numel() * s.element_size() for s in self.states)


class ReferenceSession:
    """`contracts.Session` on the torch decoder."""

    def __init__(self, model: Decoder, batch_size: int, capacity: int) -> None:
        self._model, self.batch_size, self.capacity = model, batch_size, capacity
        self.reset()

    @property
    def lengths(self) -> tuple[int, ...]:
        """Tokens each row holds now."""
        return tuple(self._lengths.tolist())

    def reset(self) -> None:
        """Empty every row."""
        self._lengths = torch.zeros(self.batch_size, dtype=torch.int64)
        self._states = tuple(empty_states(self._model.config, self.batch_size, self.capacity))

    def prefill(self, rows: Sequence[Sequence[int]]) -> FloatArray:
        """Append tokens to each row; see `contracts.Session.prefill`."""
        check_some_tokens(rows)
        logits = self._run(rows)
        ends = [max(len(row) - 1, 0) for row in rows]
        return logits[np.arange(len(rows)), ends]

    def decode(self, tokens: Sequence[int | None]) -> FloatArray:
        """Append one token to each row; see `contracts.Session.decode`."""
        return self._run([[] if t is None else [t] for t in tokens])[:, -1]

    def score(self, rows: Sequence[Sequence[int]]) -> list[FloatArray]:
        """As `prefill`, with logits after every token; see `contracts.Session.score`."""
        check_some_tokens(rows)
        logits = self._run(rows)
        return [logits[row, : len(tokens)] for row, tokens in enumerate(rows)]

    def snapshot(self) -> ReferenceSnapshot:
        """Hold the states."""
        return ReferenceSnapshot(self.lengths, self._states)

    def restore(self, snapshot: Snapshot) -> None:
        """Put back a snapshot of this session, exactly."""
        own = [state.shape for state in self._states]
        if not isinstance(snapshot, ReferenceSnapshot) or own != [
            state.shape for state in snapshot.states
        ]:
            raise GenerationError("this snapshot is of another session; restore it there")
        self._lengths, self._states = torch.tensor(snapshot.lengths), snapshot.states

    @torch.inference_mode()
    def _run(self, rows: Sequence[Sequence[int]]) -> FloatArray:
        check_rows(rows, self.lengths, self.capacity, self._model.config.vocab_size)
        new = torch.tensor([len(row) for row in rows])
        width = max(int(new.max()), 1)
        ids = torch.tensor([[*row, *[0] * (width - len(row))] for row in rows])
        logits, self._states = self._model(ids, self._states, self._lengths, new)
        self._lengths = self._lengths + new
        result: FloatArray = logits.numpy()
        return result
