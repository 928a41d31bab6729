"""`Bundle` -> what a person or a program reads about it."""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from lfm2_deploy.bundle import Bundle, ReaderRecord, StoredTensor
from lfm2_deploy.commands.console import (
    format_bytes,
    format_count,
    output,
    print_facts,
    print_table,
    print_title,
)
from lfm2_deploy.commands.model_report import describe_origin, list_model_facts
from lfm2_deploy.commands.rounding_report import print_rounding
from lfm2_deploy.config import Lfm2Config
from lfm2_deploy.imported import TRAITS, ImportedRecord
from lfm2_deploy.states import StateSpec
from lfm2_deploy.static_graphs import EMBED
from lfm2_deploy.weights import list_weights

_EXPERT = re.compile(r"\.experts\.\d+\.")


@dataclass(frozen=True, slots=True)
class PlanLine:
    """Tensors stored alike for the same reason."""

    bits: int
    group: int
    reason: str
    tensors: int
    parameters: int


@dataclass(frozen=True, slots=True)
class StateSizes:
    """What a session keeps for one row, by kind."""

    convolutions: int
    caches: int
    conv_bytes: int
    cache_bytes_per_token: int


def describe_bundle(bundle: Bundle) -> dict[str, Any]:
    """The JSON object of a bundle."""
    manifest = bundle.manifest
    return {
        "kind": "bundle",
        "path": str(bundle.path),
        "model": manifest.model,
        "origin": asdict(manifest.origin),
        "target": manifest.target,
        "runtime": manifest.runtime,
        "precision": manifest.precision,
        "context_length": manifest.context_length,
        "chunk": manifest.chunk,
        "graphs": [asdict(graph) for graph in manifest.graphs],
        "canary": describe_canary(bundle),
        "readers": [asdict(reader) for reader in manifest.readers],
        "blobs": [asdict(blob) for blob in manifest.blobs],
        "size_bytes": bundle.size_bytes,
        "files": {name: asdict(record) for name, record in manifest.files.items()},
        "states": asdict(measure_states(manifest.states)),
        "plan": [asdict(line) for line in group_plan(bundle)],
        "quantization": [asdict(tensor) for tensor in manifest.quantization],
        "imported": None if manifest.imported is None else asdict(manifest.imported),
        "rounding": None if manifest.rounding is None else asdict(manifest.rounding),
        "notes": list(manifest.notes),
        "made_with": dict(manifest.made_with),
        "config": asdict(bundle.config),
    }


def print_bundle(bundle: Bundle) -> None:
    """Write what a bundle holds."""
    manifest = bundle.manifest
    print_title(manifest.model, f"{manifest.precision} for {manifest.target}")
    made_with = ", ".join(f"{name} {version}" for name, version in manifest.made_with.items())
    print_facts(
        {
            "path": str(bundle.path),
            "from": describe_origin(manifest.origin),
            **_list_imported_facts(manifest.imported),
            "made with": made_with,
            "runs on": _describe_runtime(manifest.runtime),
            **_list_readers(manifest.readers),
            "context": f"{manifest.context_length:,} tokens",
            **_list_static_facts(bundle),
            **list_model_facts(bundle.config),
            "canary": _summarize_canary(bundle),
            "states": _summarize_states(measure_states(manifest.states)),
        }
    )
    _print_files(bundle)
    _print_plan(bundle)
    print_rounding(bundle)
    _print_notes(manifest.notes)


def describe_canary(bundle: Bundle) -> list[dict[str, Any]] | None:
    """What is remembered of the bundle's canary on each device; None where it has none."""
    from lfm2_deploy.canary.check import has_canary, list_verdicts

    if not has_canary(bundle):
        return None
    shown = ("runtime", "device", "driver")
    return [
        {**{name: key[name] for name in shown}, **verdict.describe()}
        for key, verdict in list_verdicts(bundle)
    ]


def _summarize_canary(bundle: Bundle) -> str:
    found = describe_canary(bundle)
    if found is None:
        if bundle.manifest.imported is not None:
            return "none: nothing says what an imported graph's weights should give"
        return "none, so devices are not checked: export it again to have one"
    seen = ", ".join(f"{one['outcome']} on {one['device']} ({one['runtime']})" for one in found)
    return f"there; {seen or 'not run here yet'}"


def _describe_runtime(name: str) -> str:
    """The runtime, and the package it comes from where that is not this one."""
    from lfm2_deploy.registry import list_entries

    entry = list_entries("runtime").get(name)
    if entry is None:
        return f"runtime {name}, which no installed package brings"
    return f"runtime {name} of package {entry.package}" if entry.package else f"runtime {name}"


def _list_readers(readers: Sequence[ReaderRecord]) -> dict[str, str]:
    """Other programs that find their graph in the folder."""
    words = ", ".join(f"{reader.io} ({reader.file})" for reader in readers)
    return {"read by": words} if words else {}


def _list_static_facts(bundle: Bundle) -> dict[str, str]:
    """What was chosen for graphs of fixed shape, or that take embeddings."""
    manifest = bundle.manifest
    facts = {}
    if EMBED in {graph.name for graph in manifest.graphs}:
        facts["takes"] = f"embeddings; {bundle.find_graph(EMBED).name} looks tokens up"
    if manifest.chunk:
        facts["chunk"] = f"{manifest.chunk} tokens of a prompt in one call"
    devices = {graph.device for graph in manifest.graphs if graph.name.startswith("experts")}
    if devices:
        own = {"target": manifest.target}
        facts["experts on"] = ", ".join(sorted(own.get(device, device) for device in devices))
    made = {(blob.platform, blob.compiler, blob.openvino) for blob in manifest.blobs}
    for platform, compiler, openvino in sorted(made):
        alone = f"compiler {compiler}, for OpenVINO {openvino} alone"
        facts[f"compiled {platform}"] = alone if openvino else f"{compiler}, for no other version"
    return facts


def _list_imported_facts(record: ImportedRecord | None) -> dict[str, str]:
    """Of somebody else's graph: what made it, and what it cannot do."""
    if record is None:
        return {}
    found = {"imported": record.describe()}
    for place, trait in enumerate(record.traits):
        found[f"its graph{' ' * place}"] = TRAITS[trait]
    return found


def print_tensors(bundle: Bundle) -> None:
    """Write how each tensor is stored; a `*` stands for every expert of a layer."""
    output().print()
    print_title("Tensors")
    rows = [
        (tensor.name, str(tensor.bits), str(tensor.group or ""))
        for tensor in bundle.manifest.quantization
    ]
    print_table(("name", ">bits", ">group"), rows)


def measure_states(states: tuple[StateSpec, ...]) -> StateSizes:
    """Count states, and the bytes they take in a row of one token more or less."""

    def size(spec: StateSpec) -> int:
        shape = spec.concrete_shape(batch_size=1, capacity=1)
        return int(np.prod(shape)) * np.dtype(spec.dtype).itemsize

    convolutions = [spec for spec in states if spec.kind == "conv"]
    caches = [spec for spec in states if spec.kind != "conv"]
    return StateSizes(
        convolutions=len(convolutions),
        caches=len(caches),
        conv_bytes=sum(map(size, convolutions)),
        cache_bytes_per_token=sum(map(size, caches)),
    )


def group_plan(bundle: Bundle) -> list[PlanLine]:
    """The quantization plan by bits, group and reason; the most parameters first."""
    sizes = _size_lines(bundle.config)
    groups: dict[tuple[int, int, str], list[StoredTensor]] = defaultdict(list)
    for tensor in bundle.manifest.quantization:
        groups[tensor.bits, tensor.group, tensor.reason].append(tensor)
    lines = [
        PlanLine(
            *key,
            tensors=sum(sizes[tensor.name][0] for tensor in alike),
            parameters=sum(sizes[tensor.name][1] for tensor in alike),
        )
        for key, alike in groups.items()
    ]
    return sorted(lines, key=lambda line: -line.parameters)


def _size_lines(config: Lfm2Config) -> dict[str, tuple[int, int]]:
    """A name in the plan, with `*` for experts -> its tensors and their numbers."""
    sizes: dict[str, tuple[int, int]] = defaultdict(lambda: (0, 0))
    for spec in list_weights(config):
        name = _EXPERT.sub(".experts.*.", spec.name)
        tensors, elements = sizes[name]
        sizes[name] = (tensors + 1, elements + spec.num_elements)
    return sizes


def _summarize_states(sizes: StateSizes) -> str:
    return (
        f"{format_bytes(sizes.cache_bytes_per_token)} a token in {sizes.caches} keys and values, "
        f"{format_bytes(sizes.conv_bytes)} in {sizes.convolutions} convolutions"
    )


def _print_files(bundle: Bundle) -> None:
    output().print()
    print_title("Files", format_bytes(bundle.size_bytes))
    files = bundle.manifest.files
    rows = [(name, format_bytes(files[name].size_bytes)) for name in sorted(files)]
    print_table(("name", ">size"), rows)


def _print_notes(notes: Sequence[str]) -> None:
    if notes:
        output().print()
        print_title("Notes")
        print_facts({f"{number}": text for number, text in enumerate(notes, 1)})


def _print_plan(bundle: Bundle) -> None:
    output().print()
    precision, imported = bundle.manifest.precision, bundle.manifest.imported
    print_title("Weights", "as imported" if imported else f"as --precision {precision} plans them")
    if not bundle.manifest.quantization:
        output().print("their names are not known, so they are not listed")
        return
    rows = [
        (
            str(line.bits),
            str(line.group or ""),
            f"{line.tensors:,}",
            format_count(line.parameters),
            line.reason,
        )
        for line in group_plan(bundle)
    ]
    print_table((">bits", ">group", ">tensors", ">numbers", "because"), rows)
