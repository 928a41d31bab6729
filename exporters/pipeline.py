"""The whole way from a checkpoint to a bundle."""

from __future__ import annotations

import functools
import hashlib
import json
import re
import shutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir

from exporters.draft import SEMANTIC, Draft
from exporters.encoding import EncodeJobs, encode_here
from exporters.journal import Journal
from exporters.quantize.calibrate import Calibration
from exporters.quantize.plan import Precision, TensorPlan
from exporters.quantize.ranges import Ranges
from exporters.stitch import LOGITS_TO_KEEP, BlockTracer, stitch
from exporters.targets.target import Part, Target, Wanted, Written
from exporters.trace import trace_layer
from exporters.weight_book import WeightBook
from exporters.writer import lay_out, refer_to_file, write_weights
from lfm2_deploy.bundle import (
    GENERATION,
    SCHEMA_VERSION,
    WEIGHTS,
    BlobRecord,
    Bundle,
    GraphRecord,
    Manifest,
    StoredTensor,
    check_destination,
    open_bundle,
    seal,
)
from lfm2_deploy.config import Lfm2Config
from lfm2_deploy.contracts import Checkpoint, Progress
from lfm2_deploy.errors import ExportError, ResumeError
from lfm2_deploy.gpu_graphs import BOUND_WEIGHTS
from lfm2_deploy.json_file import read_json_object
from lfm2_deploy.recommended import complete_generation_config
from lfm2_deploy.registry import find_package
from lfm2_deploy.states import list_states
from lfm2_deploy.unfinished import journal_of, writing_bundle
from lfm2_deploy.weights import list_weights

# Whose versions a manifest records.
PACKAGES = ("lfm2-deploy", "torch", "onnx-ir", "numpy")
# LFM2's conversations are 32,768 tokens long; a longer context is asked for by --context.
DEFAULT_CONTEXT = 32_768
# Attention's scores of a chunk grow with its square.
SMALLEST_CHUNK, LARGEST_CHUNK = 2, 4096
# The default of logits_to_keep, as Hugging Face names it.
LAST_ONLY = 1


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

    def __post_init__(self) -> None:
        if self.precision not in self.target.precisions:
            raise ExportError(
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

    def list_parts(self, config: Lfm2Config) -> tuple[Part, ...]:
        """The graphs to make for a model."""
        experts = self.experts or next(iter(self.target.experts), "")
        return self.target.make_parts(
            Wanted(config, experts, self.precision, self.fixed_chunk, self.ranges)
        )

    def list_notes(self, config: Lfm2Config) -> tuple[str, ...]:
        """What a user should know of what was asked for."""
        notes = (*self.remarks, *self.target.notes(self.precision))
        if self.experts is not None and config.moe is None:
            notes += (f"the model has no experts: --experts {self.experts} changed nothing",)
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


def build_drafts(
    config: Lfm2Config,
    options: ExportOptions,
    trace: BlockTracer = trace_layer,
) -> dict[str, Draft]:
    """Trace, stitch and lower every part of a target; no weight is read.

    Returns:
        name of the part -> its graph; all share one book of weights.

    Raises:
        ExportError: the context is not possible, or lowering left something over.
    """
    target, trace = options.target, functools.cache(trace)
    plan = target.plan(list_weights(config), options.precision)
    context_length = choose_context(config, options.context_length, target.context_length)
    options = options.fit_chunk(context_length)
    book, drafts = WeightBook(), {}
    dtype = ir.DataType.from_numpy(np.dtype(target.compute_dtype(options.precision)))
    for part in options.list_parts(config):
        draft = Draft(config, stitch(config, trace), plan, book, context_length, dtype)
        for rewrite in part.passes:
            rewrite(draft)
        _finish(draft, target)
        drafts[part.name] = draft
    return drafts


def build_draft(
    config: Lfm2Config,
    options: ExportOptions,
    trace: BlockTracer = trace_layer,
) -> Draft:
    """As `build_drafts`, for a target of one part."""
    (draft,) = build_drafts(config, options, trace).values()
    return draft


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


def _finish(draft: Draft, target: Target) -> None:
    left = sorted({n.op_type for n in draft.graph if n.domain == SEMANTIC})
    if left:
        raise ExportError(f"target {target.name} has no lowering for {', '.join(left)}")
    for name, value in list(draft.graph.initializers.items()):
        if name not in draft.book.declared and value.const_value is None:
            del draft.graph.initializers[name]  # a weight that passes have replaced
    draft.graph.opset_imports.clear()
    draft.graph.opset_imports.update(dict(target.opsets))
    # An input with an initializer is one that callers may leave out.
    keep = next((v for v in draft.graph.inputs if v.name == LOGITS_TO_KEEP), None)
    if keep is None:
        return
    keep.const_value = ir.tensor(np.array([LAST_ONLY], dtype=np.int64), name=LOGITS_TO_KEEP)
    draft.graph.initializers[LOGITS_TO_KEEP] = keep


def export_checkpoint(
    checkpoint: Checkpoint,
    out: Path,
    options: ExportOptions,
    progress: Progress,
    choose_encoder: Callable[[WeightBook], EncodeJobs] | None = None,
) -> Bundle:
    """Write a bundle.

    Args:
        checkpoint: the weights; each tensor is read once.
        out: the folder to make.
        options: what to make.
        progress: told of each step.
        choose_encoder: gives what runs the weight jobs; this machine's cores when None.

    Raises:
        ExportError, CheckpointError, BundleError: nothing is left at `out`.
    """
    check_destination(out, options.overwrite)
    target, config = options.target, checkpoint.config
    options = options.fit_chunk(
        choose_context(config, options.context_length, target.context_length)
    )
    options = _calibrate(checkpoint, options, progress)
    progress("tracing", 0, 0)
    drafts = build_drafts(checkpoint.config, options)
    parts = options.list_parts(checkpoint.config)
    book = drafts[parts[0].name].book
    with writing_bundle(out, options.overwrite, options.resume) as folder:
        offsets = lay_out(book)
        graphs = {
            part.onnx_file: _serialize(drafts[part.name], offsets, options.target) for part in parts
        }
        manifest = _describe(checkpoint, drafts[parts[0].name], options)
        record = b"".join(graphs.values())
        journal = _open_journal(folder, checkpoint, manifest, record, options.resume)
        if options.compile_graphs is None:
            for stale in folder.glob("*.blob*"):  # of an export that was interrupted
                stale.unlink()
        for file, graph in graphs.items():
            (folder / file).write_bytes(graph)
        _write_side_files(checkpoint, folder)
        if choose_encoder is None:
            encode = encode_here(book.jobs, checkpoint)
        else:
            encode = choose_encoder(book)
        write_weights(book, offsets, encode, folder / WEIGHTS, journal, progress)
        options.target.finish(Written(folder, drafts, parts, checkpoint, progress))
        if options.compile_graphs is not None:
            blobs = options.compile_graphs(folder, manifest.graphs, progress)
            manifest = replace(manifest, blobs=blobs)
        seal(folder, manifest, progress)
    return open_bundle(out)


def _calibrate(checkpoint: Checkpoint, options: ExportOptions, progress: Progress) -> ExportOptions:
    """The same, with ranges where the target needs them.

    Raises:
        ExportError: there are no rows to find them with.
    """
    target = options.target
    if target.calibrate is None or options.precision not in target.calibrated:
        return options
    if not options.calibration:
        raise ExportError(
            f"target {target.name} rounds activations in {options.precision} and needs rows of "
            "tokens to calibrate with"
        )
    wanted = Calibration(checkpoint, options.calibration, trace_layer, progress)
    return replace(options, ranges=target.calibrate(wanted))


def _serialize(draft: Draft, offsets: Mapping[str, int], target: Target) -> bytes:
    """A lowered graph as an ONNX file whose weights lie in the weights file."""
    refer_to_file(draft.graph, draft.book, offsets, WEIGHTS)
    model = ir.Model(
        draft.graph,
        ir_version=target.ir_version,
        producer_name="lfm2-deploy",
        producer_version=version("lfm2-deploy"),
        metadata_props=_describe_bound(draft, offsets),
    )
    graph: bytes = ir.to_proto(model).SerializeToString()
    return graph


def _describe_bound(draft: Draft, offsets: Mapping[str, int]) -> dict[str, str]:
    """Where the values of bound weights lie; see `lfm2_deploy/gpu_graphs.py`."""
    if not draft.bound:
        return {}
    declared = (draft.book.declared[name] for name in draft.bound)
    places = {d.name: [offsets[d.name], d.dtype.numpy().name, d.shape] for d in declared}
    return {BOUND_WEIGHTS: json.dumps(places)}


def _open_journal(
    folder: Path, checkpoint: Checkpoint, manifest: Manifest, graph: bytes, resume: bool
) -> Journal:
    """The journal of this export, found or new.

    Raises:
        ResumeError: the one that is there is of another export.
    """
    # The graph holds every initializer's shape and place; the manifest, versions and plan.
    record = json.dumps([checkpoint.identity, asdict(manifest)], default=str, sort_keys=True)
    fingerprint = hashlib.sha256(record.encode() + graph).hexdigest()
    file = journal_of(folder)
    journal = Journal(file, fingerprint)
    if resume and file.is_file() and file.stat().st_size and journal.read() is None:
        raise ResumeError(
            f"what an interrupted export left in {folder} is of another model, of other options "
            "or of other package versions: export as then, or without --resume to start afresh"
        )
    return journal


def _write_side_files(checkpoint: Checkpoint, folder: Path) -> None:
    for name, path in checkpoint.side_files.items():
        shutil.copyfile(path, folder / name)
    written = {
        "config.json": dict(checkpoint.raw_config),
        GENERATION: _complete_defaults(checkpoint),
    }
    for name, content in written.items():
        if content:
            (folder / name).write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")


def _complete_defaults(checkpoint: Checkpoint) -> dict[str, Any]:
    found = _read_defaults(checkpoint)
    # Only a Hub repository's name says for sure which model card is meant.
    if checkpoint.origin.kind != "hub":
        return found
    return complete_generation_config(checkpoint.origin.name, found)


def _read_defaults(checkpoint: Checkpoint) -> dict[str, Any]:
    file = checkpoint.side_files.get(GENERATION)
    if file is None:
        return {}
    return read_json_object(file, ExportError, "mend or remove it, and export again")


def list_notes(checkpoint: Checkpoint) -> tuple[str, ...]:
    """What an export assumed that the checkpoint does not say."""
    notes = checkpoint.config.assumptions
    if _complete_defaults(checkpoint) != _read_defaults(checkpoint):
        notes += (f"sampling settings are those of {checkpoint.origin.name}'s model card",)
    return notes


def _describe(checkpoint: Checkpoint, draft: Draft, options: ExportOptions) -> Manifest:
    target = options.target
    states = list_states(
        draft.config, target.state_dtype(options.precision), channels_last=target.channels_last
    )
    return Manifest(
        schema_version=SCHEMA_VERSION,
        model=checkpoint.origin.name,
        origin=checkpoint.origin,
        target=options.target.name,
        runtime=options.target.runtime,
        precision=options.precision,
        context_length=draft.context_length,
        config=dict(checkpoint.raw_config),
        states=states,
        quantization=summarize_plan(draft.plan),
        made_with={name: version(name) for name in _list_packages(target)},
        notes=(*list_notes(checkpoint), *options.list_notes(draft.config)),
        files={},
        graphs=tuple(_record(part) for part in options.list_parts(checkpoint.config)),
        chunk=options.fixed_chunk,
    )


def _list_packages(target: Target) -> tuple[str, ...]:
    """Whose versions the manifest records; the package a target of somebody else's comes from."""
    foreign = find_package("target", target.name)
    return (*PACKAGES, *target.packages, *([foreign] if foreign else []))


def _record(part: Part) -> GraphRecord:
    return GraphRecord(part.name, part.file, part.device)


def summarize_plan(plan: Mapping[str, TensorPlan]) -> tuple[StoredTensor, ...]:
    """The plan for the manifest, with all experts of a layer in one line."""
    lines = {}
    for name, entry in plan.items():
        line = re.sub(r"\.experts\.\d+\.", ".experts.*.", name)
        lines[line] = StoredTensor(line, entry.bits, entry.group, entry.reason)
    return tuple(lines.values())
