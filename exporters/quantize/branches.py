"""A model beside copies of itself that each have one part rounded, in one pass over the layers.

Enters: a checkpoint, what each branch rounds, rows of token ids. Leaves: how far each branch's
output is from the exact model's. A branch of the hidden states is born where its part is: that
part runs with rounded weights, once, and from there on the branch goes through the exact layers
together with all the others (`model/streaming.py`). So each weight is read once for all of them,
and once more where a branch of its own is born.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn

from exporters.quantize.budget import UnitKind
from exporters.quantize.pack import dequantize, quantize
from exporters.quantize.plan import TensorPlan
from lfm2_deploy.contracts import Checkpoint, FloatArray, Progress
from lfm2_deploy.model.decoder import DecoderLayer, checkpoint_name
from lfm2_deploy.model.layers import RMSNorm
from lfm2_deploy.model.moe import SparseMoe
from lfm2_deploy.model.streaming import StreamedDecoder, StreamedExperts, fill_module
from lfm2_deploy.weights import EMBEDDING, HEAD

MEASURING = "measuring sensitivity"
Plans = Mapping[str, TensorPlan]
# So many rows of a matrix, and positions with logits, are worked on at once.
_MATRIX_ROWS, _POSITIONS = 4096, 64


@dataclass(frozen=True, slots=True)
class Branch:
    """The model with one unit rounded.

    Args:
        layer, kind: the unit's.
        plans: how its tensors are stored, by name.
    """

    layer: int | None
    kind: UnitKind
    plans: Plans


@torch.inference_mode()
def measure_branches(
    checkpoint: Checkpoint,
    branches: Sequence[Branch],
    rows: Sequence[Sequence[int]],
    progress: Progress,
) -> list[float]:
    """KL divergence of each branch from the exact model, nats, the mean over all tokens.

    Args:
        checkpoint: the weights.
        branches: what to round, one at a time.
        rows: token ids, all of one length.
        progress: told of each layer.

    Raises:
        CheckpointError: a tensor cannot be read.
    """
    run, total = _Run(checkpoint, branches, rows), checkpoint.config.num_hidden_layers
    for number in range(total):
        progress(MEASURING, number, total)
        run.run_layer(number)
    found = run.finish()
    progress(MEASURING, total, total)
    return found


class _Run:
    """Hidden states of the exact model and of all branches that are born."""

    def __init__(
        self, checkpoint: Checkpoint, branches: Sequence[Branch], rows: Sequence[Sequence[int]]
    ) -> None:
        self._decoder, self._branches = StreamedDecoder(checkpoint), branches
        ids = torch.tensor([list(row) for row in rows])
        # The exact model first, then branches in the order they are born in.
        width = checkpoint.config.hidden_size
        self._states = torch.empty(1 + len(branches), *ids.shape, width)
        self._born: list[int] = []
        self._states[0] = self._decoder.embed(ids)
        for kind in ("embedding", "head"):
            for number in self._find(None, kind):
                slot = self._next_slot(number, self._states[0])
                plan = branches[number].plans.get(EMBEDDING)
                if plan is not None:
                    slot.copy_(torch.from_numpy(round_trip(slot.numpy().copy(), plan)))

    def run_layer(self, number: int) -> None:
        """Run a layer in all branches, and in those that are born in it."""
        layer = self._decoder.read_layer(number)

        def mix(x: Tensor) -> None:
            # Branch by branch: keys and values of all of them are not needed.
            for rows in x.view(-1, *self._states.shape[1:]):
                self._decoder.run_mixer(number, layer, rows, self._lengths())

        def feed_forward(x: Tensor) -> None:
            self._decoder.run_feed_forward(layer, x)

        self._run_half(layer, number, "mixer", mix)
        self._run_half(layer, number, "feed_forward", feed_forward)

    def finish(self) -> list[float]:
        """The divergences, in the order of the branches."""
        head, checkpoint = _Head(self._decoder.checkpoint), self._decoder.checkpoint
        exact = torch.cat([head.score(x) for x in self._pieces(0)])
        found = [0.0] * len(self._branches)
        name = EMBEDDING if checkpoint.config.tie_word_embeddings else HEAD
        # Those that have the exact head first: rounding it leaves none.
        slots = sorted(range(len(self._born)), key=lambda s: name in self._plans_of(s))
        for slot in slots:
            if name in self._plans_of(slot):
                head.round(self._plans_of(slot)[name])
            tested = (head.score(x) for x in self._pieces(1 + slot))
            found[self._born[slot]] = _diverge(exact, tested)
        return found

    def _run_half(
        self, layer: DecoderLayer, number: int, kind: UnitKind, run: Callable[[Tensor], None]
    ) -> None:
        before = self._states[0].clone()
        run(self._states[: 1 + len(self._born)].flatten(0, 1))
        for branch in self._find(number, kind):
            with rounded(layer, number, self._branches[branch].plans, self._decoder.checkpoint):
                run(self._next_slot(branch, before))

    def _find(self, layer: int | None, kind: str) -> list[int]:
        places = enumerate(self._branches)
        return [place for place, b in places if (b.layer, b.kind) == (layer, kind)]

    def _next_slot(self, branch: int, x: Tensor) -> Tensor:
        self._born.append(branch)
        return self._states[len(self._born)].copy_(x)

    def _plans_of(self, slot: int) -> Plans:
        return self._branches[self._born[slot]].plans

    def _lengths(self) -> Tensor:
        rows, steps = self._states.shape[1:3]
        return torch.full((rows,), steps)

    def _pieces(self, slot: int) -> tuple[Tensor, ...]:
        return torch.split(self._states[slot].flatten(0, 1), _POSITIONS)


class _Head:
    """The final norm and the head, which can be rounded."""

    def __init__(self, checkpoint: Checkpoint) -> None:
        config = checkpoint.config
        with torch.device("meta"):
            self._norm = RMSNorm(config.hidden_size, config.norm_eps)
        fill_module(self._norm, "embedding_norm", checkpoint)
        self._checkpoint = checkpoint
        self._name = EMBEDDING if config.tie_word_embeddings else HEAD
        self._weight = checkpoint.read(self._name)

    def round(self, plan: TensorPlan) -> None:
        """Round it, from what it was. In place: it may be a gigabyte."""
        del self._weight
        weight = np.require(self._checkpoint.read(self._name), requirements="W")
        self._weight = round_trip(weight, plan)

    def score(self, x: Tensor) -> Tensor:
        """[N, H] -> log-probabilities float32 [N, V]."""
        logits = nn.functional.linear(self._norm(x), torch.from_numpy(self._weight))
        return torch.log_softmax(logits, -1)


def _diverge(exact: Tensor, tested: Iterator[Tensor]) -> float:
    total = 0.0
    for p, q in zip(torch.split(exact, _POSITIONS), tested, strict=True):
        total += float((p.exp() * (p - q)).sum(dtype=torch.float64))
    return total / len(exact)


@contextmanager
def rounded(
    layer: DecoderLayer, number: int, plans: Plans, checkpoint: Checkpoint
) -> Iterator[None]:
    """A layer's weights as they will be stored, for a while."""
    exact: list[tuple[nn.Parameter, Tensor]] = []
    forward, experts = layer.feed_forward, None
    for name, parameter in layer.named_parameters():
        plan = plans.get(checkpoint_name(f"layers.{number}.{name}"))
        if plan is not None:
            exact.append((parameter, parameter.data))
            parameter.data = torch.from_numpy(round_trip(parameter.numpy().copy(), plan))
    if isinstance(forward, SparseMoe):
        experts, forward.experts = forward.experts, RoundedExperts(checkpoint, number, plans)
    try:
        yield
    finally:
        for parameter, data in exact:
            parameter.data = data
        if isinstance(forward, SparseMoe) and experts is not None:
            forward.experts = experts


class RoundedExperts(StreamedExperts):
    """A layer's experts, each rounded after it was read.

    Args:
        plans: by name; experts without one stay exact.
    """

    def __init__(self, checkpoint: Checkpoint, layer: int, plans: Plans) -> None:
        super().__init__(checkpoint, layer)
        self._plans = plans

    def expert(self, number: int) -> nn.Module:
        """Read and round expert `number`."""
        module = super().expert(number)
        prefix = f"model.layers.{self.layer}.feed_forward.experts.{number}"
        for name, parameter in module.named_parameters():
            plan = self._plans.get(f"{prefix}.{name.removeprefix('inner.')}")
            if plan is not None:
                parameter.data = torch.from_numpy(round_trip(parameter.numpy().copy(), plan))
        return module


def round_trip(weight: FloatArray, plan: TensorPlan) -> FloatArray:
    """float32 [..., K], overwritten with what storing it leaves of it."""
    flat = weight.reshape(-1, weight.shape[-1])
    for start in range(0, len(flat), _MATRIX_ROWS):
        piece = flat[start : start + _MATRIX_ROWS]
        piece[...] = dequantize(*quantize(piece, plan.bits, plan.group), plan.bits)
    return flat.reshape(weight.shape)
