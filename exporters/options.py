"""What to make of a checkpoint, checked against what the target can."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from exporters.quantize.methods import DEFAULT, Method, find_method
from exporters.quantize.plan import Precision, TensorPlan
from exporters.quantize.ranges import Ranges
from exporters.readers.reader import Reader, choose_readers, choose_weights
from exporters.targets.target import Part, Target, Wanted
from lfm2_deploy.bundle import BlobRecord, GraphRecord
from lfm2_deploy.calibration_text import CalibrationText
from lfm2_deploy.config import Lfm2Config
from lfm2_deploy.contracts import Progress
from lfm2_deploy.errors import ExportError, UnknownOptionError
from lfm2_deploy.weights import WeightSpec, list_weights

# LFM2's conversations are 32,768 tokens long; a longer context is asked for by --context.
DEFAULT_CONTEXT = 32_768
# Attention's scores of a chunk grow with its square.
SMALLEST_CHUNK, LARGEST_CHUNK = 2, 4096
# What --quantize is for.
QUANTIZED: tuple[Precision, ...] = ("int8", "int4")

# (folder, graphs, progress) -> the blobs it put into the folder.
GraphCompiler = Callable[[Path, Sequence[GraphRecord], Progress], tuple[BlobRecord, ...]]


@dataclass(frozen=True, slots=True)
class ExportOptions:
    """What to make.

    Args:
        target: where it will run.
        precision: how weights are stored.
        context_length: most tokens a row may hold; None for the model's, at most 32,768.
        overwrite: replace a bundle that is already there.
        resume: go on where an interrupted export of the same to the same place ended.
        chunk: tokens that one call of a prompt takes, for targets of fixed shapes; None for
            the target's own choice.
        experts: device that runs a mixture's experts, for targets that leave a choice.
        compile_graphs: compiles the graphs ahead of time, for targets that can be.
        remarks: for the manifest's notes, beside what the target itself says.
        calibration: token ids to find the ranges of activations with, rows of one length, for
            targets and precisions that need them.
        ranges: what calibration found; filled in by `export_checkpoint`.
        canary: token ids to cut the canary's prompts from (`lfm2_deploy/canary/script.py`); empty
            for a bundle without one.
        quantize: how weights are rounded, by name; None for the default.
        text: what they are rounded on, for methods that calibrate.
        changed: how some tensors are stored otherwise than the target plans; by name.
        max_size_bytes: most bytes of the bundle, for bits to be chosen by; 0 for no limit.
        inputs_embeds: the decoder takes embeddings, and their look-up is a graph of its own.
        io: names of the programs besides our own that shall read the bundle; empty for the
            target's usual ones.

    Raises:
        ExportError: the target has no such precision, or no chunk, or the chunk is not possible.
    """

    target: Target
    precision: Precision
    context_length: int | None = None
    overwrite: bool = False
    resume: bool = False
    chunk: int | None = None
    experts: str | None = None
    compile_graphs: GraphCompiler | None = None
    remarks: tuple[str, ...] = ()
    calibration: Sequence[Sequence[int]] = ()
    ranges: Ranges = field(default_factory=dict)
    canary: Sequence[int] = ()
    quantize: str | None = None
    text: CalibrationText | None = None
    changed: Mapping[str, TensorPlan] = field(default_factory=dict)
    max_size_bytes: int = 0
    inputs_embeds: bool = False
    io: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if self.precision not in self.target.precisions:
            raise UnknownOptionError(
                f"target {self.target.name} has no precision {self.precision!r}: "
                f"expected one of {', '.join(self.target.precisions)}"
            )
        if self.chunk is not None and not self.target.chunk:
            raise ExportError(
                f"target {self.target.name} takes prompts of any length: leave --chunk out"
            )
        if self.chunk is not None and not SMALLEST_CHUNK <= self.chunk <= LARGEST_CHUNK:
            raise ExportError(
                f"--chunk {self.chunk} is not possible: expected {SMALLEST_CHUNK} to "
                f"{LARGEST_CHUNK}"
            )

        if self.compile_graphs is not None and not self.target.compiles:
            raise ExportError(
                f"target {self.target.name} is compiled where it runs: leave --compile out"
            )
        if self.experts is not None and self.experts not in self.target.experts:
            choice = ", ".join(self.target.experts) or "none: leave --experts out"
            raise ExportError(
                f"target {self.target.name} cannot have experts on {self.experts!r}: "
                f"expected {choice}"
            )

        choose_readers(self.io, self.target.name, self.target.readers)
        self._check_rounding()
        if self.inputs_embeds and self.target.embeds != "asked":
            takes = "token ids only" if self.target.embeds == "never" else "embeddings as it is"
            raise ExportError(
                f"target {self.target.name} takes {takes}: leave --inputs-embeds out, or choose "
                "--target cpu"
            )
        if self.inputs_embeds and self.io:
            raise ExportError(
                f"--io {','.join(self.io)} is for graphs that take token ids: leave it or "
                "--inputs-embeds out"
            )

    def _check_rounding(self) -> None:
        if self.quantize is not None and self.precision not in QUANTIZED:
            raise ExportError(
                f"--quantize {self.quantize} says how integers are chosen, and {self.precision} "
                f"has none: choose --precision {' or '.join(QUANTIZED)}, or leave it out"
            )
        find_method(DEFAULT if self.quantize is None else self.quantize)
        if self.max_size_bytes and self.precision != "int4":
            raise ExportError(
                f"--max-size chooses among 4 and 8 bits, and --precision {self.precision} leaves "
                "no choice: leave one of them out"
            )
        if self.max_size_bytes and self.compile_graphs is not None:
            raise ExportError(
                "how large compiled graphs are is not known before they are made: leave "
                "--max-size or --compile out"
            )

    @property
    def needs_text(self) -> bool:
        """Whether a text to calibrate weights on is needed."""
        return self.method.calibrates or self.max_size_bytes > 0

    @property
    def method(self) -> Method:
        """How weights are rounded; of floats, the default."""
        return find_method(DEFAULT if self.quantize is None else self.quantize)

    @property
    def rounds_nothing(self) -> bool:
        """Whether every tensor's numbers are stored as the checkpoint's file has them."""
        entries = self.changed.values()
        return bool(entries) and all(e.rounding == "recover" or not e.is_quantized for e in entries)

    def plan_weights(self, config: Lfm2Config) -> dict[str, TensorPlan]:
        """How each tensor is stored, by canonical name.

        Raises:
            ExportError: a tensor does not divide into groups.
        """
        weights, found = list_weights(config), {}
        for name, entry in self.target.plan(weights, self.precision).items():
            changed = self.changed.get(name, entry)
            found[name] = replace(changed, narrow_range=entry.narrow_range)
        return {spec.name: self._choose_rounding(spec, found[spec.name]) for spec in weights}

    def _choose_rounding(self, spec: WeightSpec, entry: TensorPlan) -> TensorPlan:
        # What comes on its grid already stays there, whatever the method.
        if not entry.is_quantized or entry.rounding == "recover":
            return entry
        # Tables are looked up in, and tied to the head: they have no inputs to calibrate on.
        if self.method.calibrates and spec.role not in ("projection", "expert"):
            return entry
        return replace(entry, rounding=self.method.rounding)

    @property
    def readers(self) -> tuple[Reader, ...]:
        """The programs besides our own that shall read the bundle; none takes embeddings alone."""
        if self.inputs_embeds:
            return ()
        return choose_readers(self.io, self.target.name, self.target.readers)

    @property
    def weights_file(self) -> str:
        """Where ONNX graphs find their weights, relative to the bundle."""
        return choose_weights(self.readers, self.precision)

    def list_parts(self, config: Lfm2Config) -> tuple[Part, ...]:
        """The graphs to make for a model."""
        experts = self.experts or next(iter(self.target.experts), "")
        return self.target.make_parts(
            Wanted(
                config,
                experts,
                self.precision,
                self.fixed_chunk,
                self.ranges,
                self.inputs_embeds,
            )
        )

    def list_notes(self, config: Lfm2Config) -> tuple[str, ...]:
        """What a user should know of what was asked for."""
        notes = (*self.remarks, *self.target.notes(self.precision))
        if self.experts is not None and config.moe is None:
            notes += (f"the model has no experts: --experts {self.experts} changed nothing",)
        if self.text is not None and self.precision in QUANTIZED and self.text.remark:
            notes += (self.text.remark,)
        if self.ranges:
            tokens = sum(map(len, self.calibration))
            notes += (f"ranges of activations were found on {tokens} tokens",)
        return notes

    def fit_chunk(self, context_length: int) -> ExportOptions:
        """The same, with a chunk that is no longer than the context.

        Raises:
            ExportError: the user asked for a longer one, or the context is too short for any.
        """
        if not self.target.chunk:
            return self
        if context_length < SMALLEST_CHUNK:
            raise ExportError(
                f"--context {context_length} is not possible: target {self.target.name} expects "
                f"{SMALLEST_CHUNK} or more"
            )
        if self.chunk is not None and self.chunk > context_length:
            raise ExportError(
                f"--chunk {self.chunk} is longer than the context of {context_length}: choose "
                f"--chunk {context_length} or less, or a longer --context"
            )
        return replace(self, chunk=min(self.fixed_chunk, context_length))

    @property
    def fixed_chunk(self) -> int:
        """Tokens of a call, or 0."""
        return self.chunk or self.target.chunk


def choose_context(config: Lfm2Config, asked: int | None, usual: int | None = None) -> int:
    """The context length to build for.

    Args:
        config: the model.
        asked: by the user, if at all.
        usual: the target's default, if it has one.

    Raises:
        ExportError: more was asked for than the model has positions.
    """
    longest = config.max_position_embeddings
    if asked is None:
        return min(usual or DEFAULT_CONTEXT, longest)
    if not 1 <= asked <= longest:
        raise ExportError(f"--context {asked} is not possible: expected 1 to {longest}")
    return asked
