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
    Mark,
    Progress,
    RuntimeInfo,
    Snapshot,
    ignore_progress,
)
from lfm2_deploy.errors import GenerationError
from lfm2_deploy.model.decoder import Decoder, checkpoint_name, empty_states
from lfm2_deploy.session_checks import (
    check_counts,
    check_proposal,
    check_rows,
    check_session,
    check_some_tokens,
)
from lfm2_deploy.states import StateSpec, list_states
from runtimes.marks import Marks

MAX_PROPOSAL = 16
_CAPABILITIES = Capabilities(True, True, 0, True, MAX_PROPOSAL)


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
        self.info = RuntimeInfo(
            "reference",
            "cpu (torch)",
            _CAPABILITIES,
            driver=f"torch {torch.__version__}",
            arithmetic="float32",
        )

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
    specs: tuple[StateSpec, ...]

    @property
    def arrays(self) -> dict[str, FloatArray]:
        """State input name -> array; keys and values cut to the longest row."""
        longest = max(self.lengths)
        return {
            spec.input: (state if spec.kind == "conv" else state[:, :, :longest]).numpy()
            for spec, state in zip(self.specs, self.states, strict=True)
        }

    @property
    def size_bytes(self) -> int:
        """Memory it holds."""
        return sum(s.numel() * s.element_size() for s in self.states)


# Lengths and states before it, and its rows.
_Proposal = tuple[torch.Tensor, tuple[torch.Tensor, ...], list[list[int]]]


class ReferenceSession:
    """`contracts.Session` on the torch decoder."""

    def __init__(self, model: Decoder, batch_size: int, capacity: int) -> None:
        self._model, self.batch_size, self.capacity = model, batch_size, capacity
        self._proposal: _Proposal | None
        self.reset()

    @property
    def lengths(self) -> tuple[int, ...]:
        """Tokens each row holds now."""
        return tuple(self._lengths.tolist())

    def propose(self, rows: Sequence[Sequence[int]]) -> list[FloatArray]:
        """Append what may be taken back; see `contracts.Session.propose`."""
        check_proposal(rows, MAX_PROPOSAL)
        before = self._lengths, self._states
        logits = self.score(rows)
        self._proposal = (*before, [list(row) for row in rows])
        return logits

    def accept(self, counts: Sequence[int]) -> None:
        """Keep the first of them; see `contracts.Session.accept`."""
        if self._proposal is None:
            raise GenerationError("there is no proposal to accept; propose tokens first")
        lengths, states, rows = self._proposal
        check_counts(counts, [len(row) for row in rows])
        self._proposal = None
        kept = [row[:count] for row, count in zip(rows, counts, strict=True)]
        if kept != rows:
            # Slow and beyond doubt: go back, and append what is kept.
            self._lengths, self._states = lengths, states
            if any(kept):
                self._run(kept)

    def reset(self) -> None:
        """Empty every row."""
        self._marks, self._proposal = Marks(), None
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

    def mark(self) -> Mark:
        """Note this place; see `contracts.Session.mark`."""
        self._check_settled()
        return self._marks.add(Mark(self.lengths, self._states, 0))

    def rewind(self, mark: Mark) -> None:
        """Go back to a place; see `contracts.Session.rewind`."""
        self._marks.check(mark)
        self._lengths, self._states = torch.tensor(mark.lengths), mark.states
        self._proposal = None
        self._marks.cut(mark.lengths)

    def snapshot(self, mark: Mark | None = None) -> ReferenceSnapshot:
        """Hold the states; see `contracts.Session.snapshot`."""
        if mark is None:
            self._check_settled()
            return self._hold(self.lengths, self._states)
        self._marks.check(mark)
        return self._hold(mark.lengths, mark.states)

    def _hold(
        self, lengths: tuple[int, ...], states: tuple[torch.Tensor, ...]
    ) -> ReferenceSnapshot:
        return ReferenceSnapshot(lengths, states, list_states(self._model.config))

    def restore(self, snapshot: Snapshot) -> None:
        """Put back a snapshot of this session, exactly."""
        own = [state.shape for state in self._states]
        if not isinstance(snapshot, ReferenceSnapshot) or own != [
            state.shape for state in snapshot.states
        ]:
            raise GenerationError("this snapshot is of another session; restore it there")
        self._marks, self._proposal = Marks(), None
        self._lengths, self._states = torch.tensor(snapshot.lengths), snapshot.states

    def _check_settled(self) -> None:
        if self._proposal is not None:
            raise GenerationError("the last proposal was not accepted; call accept first")

    @torch.inference_mode()
    def _run(self, rows: Sequence[Sequence[int]]) -> FloatArray:
        self._check_settled()
        check_rows(rows, self.lengths, self.capacity, self._model.config.vocab_size)
        new = torch.tensor([len(row) for row in rows])
        width = max(int(new.max()), 1)
        ids = torch.tensor([[*row, *[0] * (width - len(row))] for row in rows])
        logits, self._states = self._model(ids, self._states, self._lengths, new)
        self._lengths = self._lengths + new
        result: FloatArray = logits.numpy()
        return result
