"""What a target is."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from exporters.draft import Draft
from exporters.quantize.calibrate import Calibration
from exporters.quantize.plan import Precision, TensorPlan, plan_tensors
from exporters.quantize.ranges import Ranges
from exporters.quantize.stored import Rounder, round_packed
from exporters.readers.reader import Reader
from lfm2_deploy.config import Lfm2Config
from lfm2_deploy.contracts import Checkpoint, Progress
from lfm2_deploy.manifest import GRAPH
from lfm2_deploy.weights import WeightSpec

Pass = Callable[[Draft], None]
Planner = Callable[[Sequence[WeightSpec], Precision], Mapping[str, TensorPlan]]


@dataclass(frozen=True, slots=True)
class Part:
    """One graph of a bundle. All graphs of a bundle share its weights file.

    Args:
        name: what runtimes call it.
        passes: rewrites in order; after them no node of the "lfm2" domain is left.
        file: its file in the bundle.
        device: where it runs: "target", or beside it "cpu" or "gpu".
    """

    name: str
    passes: tuple[Pass, ...]
    file: str = GRAPH
    device: str = "target"

    @property
    def onnx_file(self) -> str:
        """Where the exporter writes it; a target's `finish` may turn it into `file`."""
        return self.file if self.file.endswith(".onnx") else f"{self.name}.onnx"


@dataclass(frozen=True, slots=True)
class Wanted:
    """What a target may need to know to choose its graphs.

    Args:
        config: the model.
        experts: where experts run, where a target lets them run elsewhere.
        precision: how weights are stored.
        chunk: tokens that one call of a prompt takes, where a target has fixed shapes.
        ranges: what calibration saw; empty where there was none.
        inputs_embeds: whether the decoder takes embeddings, and their look-up is a graph of its
            own.
    """

    config: Lfm2Config
    experts: str
    precision: Precision
    chunk: int
    ranges: Ranges = field(default_factory=dict)
    inputs_embeds: bool = False


@dataclass(frozen=True, slots=True)
class Written:
    """A bundle's folder with graphs and weights in it, for a target's last touch.

    Args:
        folder: where everything lies.
        drafts: the lowered graphs by name of their part.
        parts: the same, as they were asked for.
        checkpoint: what they were made from.
        progress: told of each step.
        precision: how weights are stored.
        readers: the programs besides our own that shall read it.
    """

    folder: Path
    drafts: Mapping[str, Draft]
    parts: Sequence[Part]
    checkpoint: Checkpoint
    progress: Progress
    precision: Precision
    readers: Sequence[Reader]


@dataclass(frozen=True, slots=True)
class Target:
    """A place a graph can be lowered for.

    Args:
        name: what users type after `--target`.
        runtime: name of the runtime that runs it.
        precisions: those it can hold.
        make_parts: the graphs of a bundle.
        finish: called once, when all weights are written.
        opsets: domain -> version, of the operators that the passes leave.
        ir_version: ONNX file format version.
        plan: how tensors are stored.
        chunk: default of `Wanted.chunk`, for targets of fixed shapes; 0 for the others.
        context_length: default of most tokens of a row; None for the model's own.
        state_dtype: numpy name of the states' type, by precision.
        compute_dtype: numpy name of the type that graphs compute in, by precision.
        channels_last: whether conv states are [B, L-1, H].
        experts: the devices that experts may run on, the default first; none where there is
            no choice.
        compiles: whether its graphs can be compiled ahead of time.
        notes: what a user should know of a precision.
        packages: those besides the exporter's own whose versions the manifest records.
        calibrate: finds what `Wanted.ranges` says, before graphs are lowered.
        calibrated: the precisions that need it.
        groups: how many int4 values may share a scale besides what `plan` says, for sizes that
            are asked for; 0 means a whole row.
        expert_groups: the same, of experts.
        scale_bytes: of one scale.
        rounding: what storing a tensor does to its numbers, by precision.
        embeds: whether its decoder takes embeddings: "never", where that is "asked" for, or
            "always".
        readers: names of other programs that can read its graphs, the usual ones first.
    """

    name: str
    runtime: str
    precisions: tuple[Precision, ...]
    make_parts: Callable[[Wanted], tuple[Part, ...]]
    finish: Callable[[Written], None]
    opsets: tuple[tuple[str, int], ...]
    ir_version: int
    plan: Planner = plan_tensors
    chunk: int = 0
    context_length: int | None = None
    state_dtype: Callable[[Precision], str] = lambda precision: "float32"
    compute_dtype: Callable[[Precision], str] = lambda precision: "float32"
    channels_last: bool = False
    experts: tuple[str, ...] = ()
    notes: Callable[[Precision], tuple[str, ...]] = lambda precision: ()
    packages: tuple[str, ...] = ()
    compiles: bool = False
    calibrate: Callable[[Calibration], Ranges] | None = None
    calibrated: tuple[Precision, ...] = ()
    groups: tuple[int, ...] = ()
    expert_groups: tuple[int, ...] = ()
    scale_bytes: int = 4
    rounding: Callable[[Precision], Rounder] = lambda precision: round_packed
    embeds: Literal["never", "asked", "always"] = "never"
    readers: tuple[str, ...] = ()
