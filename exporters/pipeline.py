"""The whole way from a checkpoint to a bundle."""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Callable, Sequence
from dataclasses import asdict, replace
from pathlib import Path

from exporters.canary import add_canary
from exporters.describe import describe, summarize_plan
from exporters.draft import Draft
from exporters.encoding import EncodeJobs, encode_here
from exporters.journal import Journal
from exporters.lowering import Lowered, lower_parts
from exporters.options import QUANTIZED, ExportOptions, choose_context
from exporters.quantize.calibrate import Calibration
from exporters.quantize.losses import Sums, list_errors
from exporters.quantize.store import refuse_layers
from exporters.side_files import complete_side_files
from exporters.targets.target import Written
from exporters.trace import trace_layer
from exporters.weight_book import WeightBook
from exporters.writer import write_weights
from lfm2_deploy.bundle import (
    Bundle,
    Manifest,
    check_destination,
    list_files,
    open_bundle,
    seal,
)
from lfm2_deploy.contracts import Checkpoint, Progress
from lfm2_deploy.errors import ExportError, ResumeError
from lfm2_deploy.intact import remember_intact
from lfm2_deploy.quantization_record import QuantizationRecord, SizeChoice
from lfm2_deploy.unfinished import journal_of, rounded_of, writing_bundle
from lfm2_deploy.units import format_limit


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
        rounded = rounded_of(folder)
        options, choice = _fit_size(checkpoint, options, rounded, progress)
        checkpoint, record = _round(checkpoint, options, rounded, progress)
        if record is not None:
            record = replace(record, max_size_bytes=options.max_size_bytes, choice=choice)
        options = _calibrate(checkpoint, options, progress)
        progress("tracing", 0, 0)
        lowered = lower_parts(config, options)
        book = lowered.book
        manifest = describe(checkpoint, lowered.first, options, record)
        content = b"".join(lowered.files.values())
        journal = _open_journal(folder, checkpoint, manifest, content, options.resume)
        _write_small_files(checkpoint, lowered, options, folder)
        if choose_encoder is None:
            encode = encode_here(book.jobs, checkpoint)
        else:
            encode = choose_encoder(book)
        data = folder / options.weights_file
        losses = write_weights(book, lowered.offsets, encode, data, journal, progress)
        manifest = _add_errors(manifest, losses, lowered.first)
        target.finish(
            Written(
                folder, lowered.drafts, lowered.parts, checkpoint, progress,
                options.precision, options.readers,
            )
        )  # fmt: skip
        if options.compile_graphs is not None:
            blobs = options.compile_graphs(folder, manifest.graphs, progress)
            manifest = replace(manifest, blobs=blobs)
        add_canary(folder, checkpoint, lowered.first, options, progress)
        seal(folder, manifest, progress)
        _require_size(folder, options.max_size_bytes)
    bundle = open_bundle(out)
    remember_intact(bundle)
    return bundle


def _fit_size(
    checkpoint: Checkpoint, options: ExportOptions, folder: Path, progress: Progress
) -> tuple[ExportOptions, SizeChoice | None]:
    """The same, with bits that suit the size that was asked for, and what they were chosen by."""
    if not options.max_size_bytes:
        return options, None
    # torch's part, which exports without need not load.
    from exporters.sizing import fit_size

    # Of targets with ranges the graphs depend on them; how large they are does not.
    ranges = _calibrate(checkpoint, options, progress).ranges
    found, choice = fit_size(checkpoint, replace(options, ranges=ranges), folder, progress)
    return replace(found, ranges={}), choice


def _require_size(folder: Path, most: int) -> None:
    size = sum(file.stat().st_size for file in list_files(folder))
    if most and size > most:
        raise ExportError(
            f"the bundle takes {format_limit(size, up=True)}, more than the {format_limit(most)} "
            "of --max-size: graphs turned out larger than was foreseen; ask for --max-size "
            f"{format_limit(2 * most - size)} to get there"
        )


def _round(
    checkpoint: Checkpoint, options: ExportOptions, folder: Path, progress: Progress
) -> tuple[Checkpoint, QuantizationRecord | None]:
    """The checkpoint with weights rounded beforehand, where the method does that.

    Raises:
        ExportError: there is no text to calibrate on.
        ResumeError: the folder holds layers that were rounded otherwise.
    """
    method = options.method
    if options.precision not in QUANTIZED or not method.calibrates:
        refuse_layers(folder)
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


def _add_errors(manifest: Manifest, losses: Sequence[dict[str, Sums]], draft: Draft) -> Manifest:
    """The same, with what rounding was found to take from weights while they were written."""
    if manifest.rounding is None:
        return manifest
    found = (*manifest.rounding.weights, *list_errors(losses, draft.plan))
    places = {line.name: place for place, line in enumerate(summarize_plan(draft.plan))}
    weights = tuple(sorted(found, key=lambda line: places[line.name]))
    return replace(manifest, rounding=replace(manifest.rounding, weights=weights))


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


def _write_small_files(
    checkpoint: Checkpoint, lowered: Lowered, options: ExportOptions, folder: Path
) -> None:
    """All but weights and manifest."""
    if options.compile_graphs is None:
        for stale in folder.glob("*.blob*"):  # of an export that was interrupted
            stale.unlink()
    for file, graph in lowered.files.items():
        (folder / file).parent.mkdir(exist_ok=True)
        (folder / file).write_bytes(graph)
    for name, path in checkpoint.side_files.items():
        shutil.copyfile(path, folder / name)
    for name, content in complete_side_files(checkpoint, options).items():
        (folder / name).write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")
