"""The whole way from a checkpoint to a bundle."""

from __future__ import annotations

import functools
import hashlib
import json
import shutil
from collections.abc import Callable, Mapping
from dataclasses import asdict, replace
from importlib.metadata import version
from pathlib import Path

import numpy as np
import onnx_ir as ir

from exporters.canary import add_canary
from exporters.describe import complete_defaults, describe
from exporters.draft import SEMANTIC, Draft
from exporters.encoding import EncodeJobs, encode_here
from exporters.journal import Journal
from exporters.options import QUANTIZED, ExportOptions, choose_context
from exporters.quantize.calibrate import Calibration
from exporters.stitch import LOGITS_TO_KEEP, BlockTracer, stitch
from exporters.targets.target import Target, Written
from exporters.trace import trace_layer
from exporters.weight_book import WeightBook
from exporters.writer import lay_out, refer_to_file, write_weights
from lfm2_deploy.bundle import (
    GENERATION,
    WEIGHTS,
    Bundle,
    Manifest,
    check_destination,
    open_bundle,
    seal,
)
from lfm2_deploy.config import Lfm2Config
from lfm2_deploy.contracts import Checkpoint, Progress
from lfm2_deploy.errors import ExportError, ResumeError
from lfm2_deploy.gpu_graphs import BOUND_WEIGHTS
from lfm2_deploy.quantization_record import QuantizationRecord
from lfm2_deploy.unfinished import journal_of, rounded_of, writing_bundle

# The default of logits_to_keep, as Hugging Face names it.
LAST_ONLY = 1


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
    plan = options.plan_weights(config)
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
    with writing_bundle(out, options.overwrite, options.resume) as folder:
        checkpoint, record = _round(checkpoint, options, rounded_of(folder), progress)
        options = _calibrate(checkpoint, options, progress)
        progress("tracing", 0, 0)
        drafts = build_drafts(config, options)
        parts = options.list_parts(config)
        book = drafts[parts[0].name].book
        offsets = lay_out(book)
        graphs = {
            part.onnx_file: _serialize(drafts[part.name], offsets, options.target) for part in parts
        }
        manifest = describe(checkpoint, drafts[parts[0].name], options, record)
        content = b"".join(graphs.values())
        journal = _open_journal(folder, checkpoint, manifest, content, options.resume)
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
        add_canary(folder, checkpoint, drafts[parts[0].name], options, progress)
        seal(folder, manifest, progress)
    return open_bundle(out)


def _round(
    checkpoint: Checkpoint, options: ExportOptions, folder: Path, progress: Progress
) -> tuple[Checkpoint, QuantizationRecord | None]:
    """The checkpoint with weights rounded beforehand, where the method does that.

    Raises:
        ExportError: there is no text to calibrate on.
    """
    method = options.method
    if options.precision not in QUANTIZED:
        return checkpoint, None
    if not method.calibrates:
        return checkpoint, QuantizationRecord(method.name)
    if options.text is None:
        raise ExportError(f"--quantize {method.name} needs a text to calibrate on")
    # torch's part, which other methods need not load.
    from exporters.quantize.layerwise import Job
    from exporters.quantize.rounded import round_checkpoint

    plan = options.plan_weights(checkpoint.config)
    job = Job(checkpoint, plan, method, options.text.rows, progress)
    return round_checkpoint(job, options.text, folder)


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
        GENERATION: complete_defaults(checkpoint),
    }
    for name, content in written.items():
        if content:
            (folder / name).write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")
