"""What the manifest says of a bundle: where it came from, how it is stored, what was assumed."""

from __future__ import annotations

import re
from collections.abc import Mapping
from importlib.metadata import version

from exporters.draft import Draft
from exporters.options import ExportOptions
from exporters.quantize.plan import TensorPlan
from exporters.side_files import complete_defaults, read_defaults
from exporters.targets.target import Part, Target
from lfm2_deploy.bundle import (
    SCHEMA_VERSION,
    GraphRecord,
    Manifest,
    ReaderRecord,
    StoredTensor,
)
from lfm2_deploy.contracts import Checkpoint
from lfm2_deploy.quantization_record import QuantizationRecord
from lfm2_deploy.registry import find_package
from lfm2_deploy.states import list_states

# Whose versions a manifest records.
PACKAGES = ("lfm2-deploy", "torch", "onnx-ir", "numpy")


def describe(
    checkpoint: Checkpoint,
    draft: Draft,
    options: ExportOptions,
    rounding: QuantizationRecord | None,
) -> Manifest:
    """The manifest of a bundle that is being made; sizes and hashes come last."""
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
        rounding=rounding,
        weights=options.weights_file,
        readers=tuple(
            ReaderRecord(reader.name, reader.graph(options.precision)) for reader in options.readers
        ),
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


def list_notes(checkpoint: Checkpoint) -> tuple[str, ...]:
    """What an export assumed that the checkpoint does not say."""
    notes = checkpoint.config.assumptions
    if complete_defaults(checkpoint) != read_defaults(checkpoint):
        notes += (f"sampling settings are those of {checkpoint.origin.name}'s model card",)
    return notes
