"""A checkpoint -> the same with rounded weights, layer by layer, in bounded memory.

Two models run side by side: the exact one, and the one whose layers are rounded so far. Each
matrix is fitted to the inputs that it has in the second and to the outputs of the first. Memory
holds both models' hidden states, one layer or one expert, and one matrix's moments; what is
rounded goes to the disk (`store.py`), and an interrupted export goes on after the last layer
that is whole there.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor, nn

from exporters.quantize.experts import Counts, activate, replace, round_experts
from exporters.quantize.folding import FoldedCheckpoint
from exporters.quantize.gptq import Rounded, measure_error, round_feeding_on, round_nearest
from exporters.quantize.grid import Grid
from exporters.quantize.losses import shorten, summarize_errors
from exporters.quantize.methods import Method
from exporters.quantize.moments import Moments, Pieces
from exporters.quantize.pack import dequantize, quantize
from exporters.quantize.plan import TensorPlan
from exporters.quantize.scaling import LayerScaler, thin_out
from exporters.quantize.store import LayerWriter, Store
from exporters.quantize.twin import Twin, run_feed_forward
from lfm2_deploy.calibration_text import measure_novelty
from lfm2_deploy.contracts import Checkpoint, Progress
from lfm2_deploy.model.layers import SwiGLU
from lfm2_deploy.model.streaming import StreamedDecoder
from lfm2_deploy.quantization_record import LayerError, TensorError, WeightError
from lfm2_deploy.weights import EMBEDDING

ROUNDING = "rounding weights"


@dataclass(frozen=True, slots=True)
class Job:
    """What to round, and on what.

    Args:
        checkpoint: the weights.
        plan: how tensors are stored, by name.
        method: a calibrating one.
        rows: token ids, all of one length.
        progress: told of each layer.
    """

    checkpoint: Checkpoint
    plan: Mapping[str, TensorPlan]
    method: Method
    rows: Sequence[Sequence[int]]
    progress: Progress


def round_layers(job: Job, store: Store) -> None:
    """Round every layer that the store does not hold yet.

    Raises:
        CheckpointError: a tensor cannot be read.
        DiskFullError: the store cannot hold it.
    """
    checkpoint = FoldedCheckpoint(job.checkpoint)
    decoder = StreamedDecoder(checkpoint)
    total = decoder.config.num_hidden_layers
    job.progress(ROUNDING, store.layers, total)
    if store.layers == total:
        return
    exact, rounded = _begin(job, store, decoder)
    for number in range(store.layers, total):
        writer = store.write_layer(number)
        scaler = LayerScaler(checkpoint, job.plan, number) if job.method.scales else None
        if scaler is not None:
            scaler.scale(exact)
        record = LayerRounder(job, Twin(decoder, number, exact, rounded), writer, scaler).round()
        for name in checkpoint.folded:
            if name.startswith(f"model.layers.{number}.") and name not in writer.names:
                writer.put_floats(name, checkpoint.read(name))
        if number + 1 < total:
            store.save_hidden(number, exact.numpy(), rounded.numpy())
        writer.finish(record)
        store.drop_hidden(number - 1)
        job.progress(ROUNDING, number + 1, total)


@dataclass(frozen=True, slots=True)
class Measured:
    """What was measured of layers; see `QuantizationRecord`."""

    tensors: tuple[TensorError, ...]
    layers: tuple[LayerError, ...]
    weights: tuple[WeightError, ...]


def read_records(store: Store) -> Measured:
    """What was measured of every layer in the store."""
    records = store.records
    return Measured(
        tuple(TensorError(**line) for record in records for line in record["tensors"]),
        tuple(LayerError(**record["layer"]) for record in records),
        tuple(WeightError(**line) for record in records for line in record["weights"]),
    )


def _begin(job: Job, store: Store, decoder: StreamedDecoder) -> tuple[Tensor, Tensor]:
    """Both models' hidden states before the first layer that is to be rounded."""
    ids = torch.tensor([list(row) for row in job.rows])
    if store.layers:
        shape = (*ids.shape, decoder.config.hidden_size)
        first, second = store.load_hidden(store.layers - 1, 2, shape)
        return torch.from_numpy(first), torch.from_numpy(second)
    exact, entry = decoder.embed(ids).clone(), job.plan[EMBEDDING]
    if not entry.is_quantized:
        return exact, exact.clone()
    # As encoders store it: rows are rounded apart from each other.
    stored = dequantize(*quantize(exact.numpy(), entry.bits, entry.group), entry.bits)
    return exact, torch.from_numpy(stored)


class LayerRounder:
    """Rounds one layer.

    Args:
        job: how.
        twin: the layer in both models; its hidden states become those after it.
        writer: takes what is rounded.
        scaler: scales channels beforehand; None where the method does not.
    """

    def __init__(
        self, job: Job, twin: Twin, writer: LayerWriter, scaler: LayerScaler | None
    ) -> None:
        self._job, self._twin, self._writer, self._scaler = job, twin, writer, scaler
        self._prefix = f"model.layers.{twin.number}"
        self._novelty = measure_novelty(job.rows)
        # Of products on the text, and of the weights themselves; by tensor.
        self._errors: dict[str, float] = {}
        self._losses: dict[str, float] = {}

    @torch.inference_mode()
    def round(self) -> dict[str, Any]:
        """Round all of it; what was measured."""
        twin = self._twin
        inner = ("q_proj", "k_proj", "v_proj") if twin.exact.is_attention else ("in_proj",)
        self._round_stage(twin.mixer, inner)
        self._round_stage(twin.mixer, ("out_proj",))
        twin.advance(twin.run_mixer)
        counts = Counts()
        if twin.is_mixture:
            counts = round_experts(twin, self._round_expert)
        else:
            self._round_stage("feed_forward", ("w1", "w3"))
            self._round_stage("feed_forward", ("w2",))
            twin.advance(run_feed_forward)
        layer = LayerError(
            twin.number, _compare(twin.x, twin.y), counts.fewest, counts.middle, counts.rare
        )
        plan = self._job.plan
        return {
            "tensors": [*map(asdict, summarize_errors(self._errors, plan, TensorError))],
            "weights": [*map(asdict, summarize_errors(self._losses, plan, WeightError))],
            "layer": asdict(layer),
        }

    def _round_stage(self, module: str, leaves: tuple[str, ...]) -> None:
        """Round projections of one input."""
        pairs = [self._twin.find(f"{module}.{leaf}") for leaf in leaves]
        to_residual = leaves[0] in ("out_proj", "w2")

        def inputs() -> Pieces:
            for x, y, lost in self._twin.inputs_of(f"{module}.{leaves[0]}"):
                yield x, y, None, (lost if to_residual else None)

        names = [f"{self._prefix}.{module}.{leaf}.weight" for leaf in leaves]
        self._fit(names, pairs, inputs)

    def _round_expert(
        self,
        expert: str,
        leaves: tuple[str, ...],
        exact: SwiGLU,
        rounded: SwiGLU,
        inputs: Callable[[], Pieces],
    ) -> None:
        if self._scaler is not None and "w3" in leaves:
            x = thin_out(activate(exact, x) for x, *_ in inputs())
            scales = self._scaler.scale_down(f"{self._prefix}.feed_forward.{expert}", x)
            # Both models' weights are the same memory until they are rounded.
            exact.w3.weight /= scales[:, None]
            exact.w2.weight *= scales
        pairs = [(exact.get_submodule(leaf), rounded.get_submodule(leaf)) for leaf in leaves]
        names = [f"{self._prefix}.feed_forward.{expert}.{leaf}.weight" for leaf in leaves]
        self._fit(names, pairs, inputs)

    def _fit(
        self,
        names: Sequence[str],
        pairs: Sequence[tuple[nn.Module, nn.Module]],
        inputs: Callable[[], Pieces],
    ) -> None:
        """Round matrices of one input, where the plan says so."""
        plan = self._job.plan
        matrices = [
            (name, *pair)
            for name, pair in zip(names, pairs, strict=True)
            if plan[name].is_quantized
        ]
        if not matrices:
            return
        exact = [_weight(linear) for _, linear, _ in matrices]
        second, corrected = _gather(exact, inputs, self._novelty)
        fitted = corrected if self._job.method.feeds_on else torch.cat(exact)
        wanted = torch.split(fitted, [len(weight) for weight in exact])
        for grid, numbers in _group([Grid.of(plan[name]) for name, _, _ in matrices]).items():
            found = self._round_matrix(torch.cat([wanted[n] for n in numbers]), second, grid)
            parts = found.split([len(exact[n]) for n in numbers])
            for number, part in zip(numbers, parts, strict=True):
                name, _, rounded = matrices[number]
                replace(rounded, part.expand())
                self._writer.put_levels(name, part.levels.numpy(), part.steps.numpy(), grid.bits)
                self._errors[name] = measure_error(exact[number], _weight(rounded), second)
                self._losses[name] = _measure_loss(exact[number], _weight(rounded))

    def _round_matrix(self, weight: Tensor, second: Tensor, grid: Grid) -> Rounded:
        rounder = round_feeding_on if self._job.method.feeds_on else round_nearest
        return rounder(weight, second, grid)


def _gather(
    exact: Sequence[Tensor], inputs: Callable[[], Pieces], novelty: float
) -> tuple[Tensor, Tensor]:
    """What `Moments.take` gives, and nothing else stays in memory: of a wide block the last piece
    of inputs alone is 0.2 GiB."""
    moments = Moments(torch.cat(list(exact)) if len(exact) > 1 else exact[0], novelty)
    for piece in inputs():
        moments.add(*piece)
        del piece
    return moments.take()


def _group(grids: Sequence[Grid]) -> dict[Grid, list[int]]:
    """Places of each grid, in order."""
    places: dict[Grid, list[int]] = {}
    for place, grid in enumerate(grids):
        places.setdefault(grid, []).append(place)
    return places


def _weight(linear: nn.Module) -> Tensor:
    assert isinstance(linear, nn.Linear)
    return linear.weight.detach()


def _measure_loss(weight: Tensor, rounded: Tensor) -> float:
    """||W - Q|| / ||W||; of zeros, which stay zeros, 0."""
    whole = float(weight.norm())
    return float((weight - rounded).norm()) / whole if whole > 0 else 0.0


def _compare(exact: Tensor, rounded: Tensor) -> float:
    lost = torch.stack([(x - y).square().sum() for x, y in zip(exact, rounded, strict=True)])
    whole = torch.stack([x.square().sum() for x in exact])
    return shorten(float((lost.sum() / whole.sum().clamp_min(1e-30)).sqrt()))
