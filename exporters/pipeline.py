"""The whole way from a checkpoint to a bundle."""

from __future__ import annotations

import hashlib
import json
import re
import shutil
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir

from exporters.draft import SEMANTIC, Draft
from exporters.encoding import EncodeJobs, encode_here
from exporters.genai_config import make_genai_config
from exporters.journal import Journal
from exporters.quantize.plan import Precision, TensorPlan, plan_tensors
from exporters.stitch import LOGITS_TO_KEEP, BlockTracer, stitch
from exporters.targets.target import Target
from exporters.trace import trace_layer
from exporters.weight_book import WeightBook
from exporters.writer import lay_out, refer_to_file, write_weights
from lfm2_deploy.bundle import (
    GENERATION,
    GRAPH,
    SCHEMA_VERSION,
    WEIGHTS,
    Bundle,
    Manifest,
    StoredTensor,
    check_destination,
    open_bundle,
    seal,
)
from lfm2_deploy.config import Lfm2Config
from lfm2_deploy.contracts import Checkpoint, Progress
from lfm2_deploy.errors import ExportError, ResumeError
from lfm2_deploy.json_file import read_json_object
from lfm2_deploy.recommended import complete_generation_config
from lfm2_deploy.states import list_states
from lfm2_deploy.unfinished import journal_of, writing_bundle
from lfm2_deploy.weights import list_weights

# LFM2's conversations are 32,768 tokens long; a longer context is asked for by --context.
DEFAULT_CONTEXT = 32_768
# The default of logits_to_keep, as Hugging Face names it.
LAST_ONLY = 1


@dataclass(frozen=True, slots=True)
class ExportOptions:
    """What to make.

    Args:
        target: where it will run.
        precision: how weights are stored.
        context_length: most tokens a row may hold; None for the model's, at most 32,768.
        overwrite: replace a bundle that is already there.
        resume: go on where an interrupted export of the same to the same place ended.

    Raises:
        ExportError: the target has no such precision.
    """

    target: Target
    precision: Precision
    context_length: int | None = None
    overwrite: bool = False
    resume: bool = False

    def __post_init__(self) -> None:
        if self.precision not in self.target.precisions:
            raise ExportError(
                f"target {self.target.name} has no precision {self.precision!r}: "
                f"expected one of {', '.join(self.target.precisions)}"
            )


def build_draft(
    config: Lfm2Config,
    options: ExportOptions,
    trace: BlockTracer = trace_layer,
) -> Draft:
    """Trace, stitch and lower; no weight is read.

    Raises:
        ExportError: the context is not possible, or lowering left something over.
    """
    target = options.target
    plan = plan_tensors(list_weights(config), options.precision)
    context_length = choose_context(config, options.context_length)
    draft = Draft(config, stitch(config, trace), plan, WeightBook(), context_length)
    for rewrite in target.passes:
        rewrite(draft)
    _finish(draft, target)
    return draft


def choose_context(config: Lfm2Config, asked: int | None) -> int:
    """The context length to build for.

    Raises:
        ExportError: more was asked for than the model has positions.
    """
    longest = config.max_position_embeddings
    if asked is None:
        return min(DEFAULT_CONTEXT, longest)
    if not 1 <= asked <= longest:
        raise ExportError(f"--context {asked} is not possible: expected 1 to {longest}")
    return asked


def _finish(draft: Draft, target: Target) -> None:
    left = sorted({n.op_type for n in draft.graph if n.domain == SEMANTIC})
    if left:
        raise ExportError(f"target {target.name} has no lowering for {', '.join(left)}")
    for name in [n for n in draft.graph.initializers if n not in draft.book.values]:
        del draft.graph.initializers[name]
    draft.graph.opset_imports.clear()
    draft.graph.opset_imports.update(dict(target.opsets))
    # An input with an initializer is one that callers may leave out.
    keep = next(v for v in draft.graph.inputs if v.name == LOGITS_TO_KEEP)
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
    progress("tracing", 0, 0)
    draft = build_draft(checkpoint.config, options)
    with writing_bundle(out, options.overwrite, options.resume) as folder:
        offsets = lay_out(draft.book)
        refer_to_file(draft.book, offsets, WEIGHTS)
        model = ir.Model(
            draft.graph,
            ir_version=options.target.ir_version,
            producer_name="lfm2-deploy",
            producer_version=version("lfm2-deploy"),
        )
        graph = ir.to_proto(model).SerializeToString()
        manifest = _describe(checkpoint, draft, options)
        journal = _open_journal(folder, checkpoint, manifest, graph, options.resume)
        (folder / GRAPH).write_bytes(graph)
        _write_side_files(checkpoint, draft, folder)
        if choose_encoder is None:
            encode = encode_here(draft.book.jobs, checkpoint)
        else:
            encode = choose_encoder(draft.book)
        write_weights(draft.book, offsets, encode, folder / WEIGHTS, journal, progress)
        seal(folder, manifest, progress)
    return open_bundle(out)


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


def _write_side_files(checkpoint: Checkpoint, draft: Draft, folder: Path) -> None:
    for name, path in checkpoint.side_files.items():
        shutil.copyfile(path, folder / name)
    config = draft.config
    genai = make_genai_config(config, list_states(config), GRAPH, draft.context_length)
    written = {
        "config.json": dict(checkpoint.raw_config),
        "genai_config.json": genai,
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
    packages = ("lfm2-deploy", "torch", "onnx-ir", "numpy")
    return Manifest(
        schema_version=SCHEMA_VERSION,
        model=checkpoint.origin.name,
        origin=checkpoint.origin,
        target=options.target.name,
        runtime=options.target.runtime,
        precision=options.precision,
        context_length=draft.context_length,
        config=dict(checkpoint.raw_config),
        states=list_states(draft.config),
        quantization=summarize_plan(draft.plan),
        made_with={name: version(name) for name in packages},
        notes=list_notes(checkpoint),
        files={},
    )


def summarize_plan(plan: Mapping[str, TensorPlan]) -> tuple[StoredTensor, ...]:
    """The plan for the manifest, with all experts of a layer in one line."""
    lines = {}
    for name, entry in plan.items():
        line = re.sub(r"\.experts\.\d+\.", ".experts.*.", name)
        lines[line] = StoredTensor(line, entry.bits, entry.group, entry.reason)
    return tuple(lines.values())
