"""What a card says of a bundle: sizes, memory, accuracy, devices, making. Plain values and words.

Enters: an opened bundle and what was measured of it. Leaves: lines and rows for the template.
What nobody measured is not told: then the command that measures it stands in its place.
"""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import median

from lfm2_deploy.bundle import EMBED_FILE, Bundle
from lfm2_deploy.card.measurements import Figure, Measurement
from lfm2_deploy.card.metadata import HUB, find_base
from lfm2_deploy.charts.text import make_visible
from lfm2_deploy.footprint import Storage, expand_plan, measure_footprint
from lfm2_deploy.imported import KEPT_OF_GGUF, ImportedRecord
from lfm2_deploy.manifest import Manifest
from lfm2_deploy.units import format_bytes
from lfm2_deploy.weights import list_weights

# A conversation of this length fits most uses; less where the context is shorter.
_USUAL_CONTEXT = 4096
_ITEM_BYTES = {"float32": 4, "float16": 2}
_METHODS = {
    "rtn": "rounded to nearest",
    "search": "scales searched for the least error",
    "awq": "calibrated with AWQ",
    "gptq": "calibrated with GPTQ",
    "awq+gptq": "calibrated with AWQ, then GPTQ",
}
_TARGETS = {
    "cpu": "CPUs (ONNX Runtime)",
    "openvino-cpu": "CPUs (OpenVINO)",
    "igpu": "Intel GPUs (OpenVINO)",
    "npu": "Intel NPUs (OpenVINO)",
    "webgpu": "GPUs (ONNX Runtime, WebGPU)",
    "directml": "GPUs on Windows (ONNX Runtime, DirectML)",
    "qnn": "Qualcomm NPUs (ONNX Runtime, QNN)",
}
# What says most of quality first.
_ACCURACY = ("compare", "verify", "eval")
_COSTS = ("tok/s", "ms", "s", "bytes")
# Targets that are for what any computer has: a CPU in place of another target's device says little.
_CPU_TARGETS = ("cpu", "openvino-cpu")
_NAMES = {"check": "canary"}
# "cpu", "CPU (AMD EPYC)", "CPU (onnxruntime), in the place of a Qualcomm NPU".
_CPU = re.compile(r"cpu\b", re.IGNORECASE)


@dataclass(frozen=True, slots=True)
class DeviceRow:
    """One device, and what was done on it.

    Args:
        device: its name, with its driver.
        way: "executed", "emulated", "compiled" or "not checked".
        found: what came out.
        versions: of what computed.
        date: the last one; "" for none.
    """

    device: str
    way: str
    found: str
    versions: str
    date: str


@dataclass(frozen=True, slots=True)
class FigureGroup:
    """Figures of one measurement, with all that they depend on.

    Args:
        title: the command, what it was held against, on what, where and when.
        rows: (figure, value).
    """

    title: str
    rows: tuple[tuple[str, str], ...]


def describe_target(bundle: Bundle) -> str:
    """What it was made for, for people."""
    target = bundle.manifest.target
    return _TARGETS.get(target, f"target {target}")


def describe_weights(bundle: Bundle) -> str:
    """How weights are stored: "4 bits (84 %), 8 bits (15 %), 32 bits (0.5 %); scales searched"."""
    storages = _find_storages(bundle)
    if storages is None:
        return "how each is stored is not known"
    counts: dict[int, int] = {}
    for spec in list_weights(bundle.config):
        bits = storages[spec.name].bits
        counts[bits] = counts.get(bits, 0) + spec.num_elements
    total = sum(counts.values())
    shares = [f"{bits} bits ({_share(counts[bits] / total)})" for bits in sorted(counts)]
    rounding = bundle.manifest.rounding
    method = "" if rounding is None else f"; {_METHODS.get(rounding.method, rounding.method)}"
    return ", ".join(shares) + method


def describe_memory(bundle: Bundle) -> str:
    """Memory at a usual context, by arithmetic; of targets without a model, the parts known."""
    context = min(_USUAL_CONTEXT, bundle.manifest.context_length)
    with_context = f"with a conversation of {context:,} tokens"
    storages = _find_storages(bundle)
    if bundle.manifest.target == "cpu" and storages is not None:
        context_length = bundle.manifest.context_length
        footprint = measure_footprint(bundle.config, storages, context_length)
        return f"{format_bytes(footprint.resident(context))} {with_context}"
    size = 0
    for spec in bundle.manifest.states:
        shape = spec.concrete_shape(1, context)
        size += math.prod(shape) * _ITEM_BYTES[spec.dtype]
    return f"the weights, and {format_bytes(size)} {with_context}"


def list_files(bundle: Bundle) -> list[tuple[str, str]]:
    """(name, size) of every file, largest first."""
    files = sorted(bundle.manifest.files.items(), key=lambda item: (-item[1].size_bytes, item[0]))
    return [(name, format_bytes(record.size_bytes)) for name, record in files]


def describe_rounding(bundle: Bundle) -> str:
    """What the export itself measured of rounding; "" where it did not."""
    rounding = bundle.manifest.rounding
    errors = () if rounding is None else rounding.errors
    if rounding is None or not errors:
        return ""
    middle, most = median(line.error for line in errors), max(line.largest for line in errors)
    what = "a tensor's product on the calibration text" if rounding.is_of_products else "a tensor"
    on = f" ({rounding.tokens:,} tokens of {rounding.text})" if rounding.is_of_products else ""
    return (
        f"Rounding changes {what} by {_share(middle)} in the median and by {_share(most)} at most"
        f"{on}: relative RMS, measured at export. It is no figure of quality."
    )


def summarize_accuracy(found: Sequence[Measurement]) -> str:
    """The figures a reader asks for first, in one line; "" where nobody measured any."""
    ordered = _choose(found)
    if not ordered:
        return ""
    best = ordered[0]
    figures = [f"{figure.name} {format_figure(figure)}" for figure in best.figures[:2]]
    against = "" if not best.reference else f" against {best.reference}"
    verdict = f" ({best.outcome})" if best.outcome == "failed" else ""
    return f"{', '.join(figures)}{against}{verdict}"


def list_accuracy(found: Sequence[Measurement]) -> list[FigureGroup]:
    """Every figure of accuracy, the best measured first."""
    return [_group(one, is_cost=False) for one in _choose(found)]


def list_speeds(found: Sequence[Measurement]) -> list[FigureGroup]:
    """Speed and memory, of `bench` where it ran on a device, else of `compare`."""
    benched = {(one.device, one.driver) for one in found if one.kind == "bench"}
    groups = [
        _group(one, is_cost=True)
        for one in found
        if one.kind == "bench" or (one.device, one.driver) not in benched
    ]
    return [group for group in groups if group.rows]


def list_devices(bundle: Bundle, found: Sequence[Measurement]) -> list[DeviceRow]:
    """Where it really ran, where it was only compiled; or that nobody checked."""
    groups: dict[tuple[str, str, str], list[Measurement]] = {}
    for one in found:
        groups.setdefault((one.device, one.driver, one.way), []).append(one)
    rows = [_describe_device(*group, ones) for group, ones in groups.items()]
    for platform, compiler in sorted({(b.platform, b.compiler) for b in bundle.manifest.blobs}):
        rows.append(
            DeviceRow(f"NPU {platform}", "compiled", "ahead of time, not executed", compiler, "")
        )
    if not _ran_on_target(bundle, found):
        rows.append(DeviceRow(describe_target(bundle), "not checked", "", "", ""))
    return rows


def _ran_on_target(bundle: Bundle, found: Sequence[Measurement]) -> bool:
    """Whether any of it ran on a device of the kind that the bundle is for."""
    if bundle.manifest.target in _CPU_TARGETS:
        return bool(found)
    return any(one.way == "executed" and not _CPU.match(one.device) for one in found)


def summarize_devices(bundle: Bundle, found: Sequence[Measurement]) -> str:
    """The devices in one line, each with what was done there; "" where nothing was."""
    ordered = sorted(found, key=lambda one: (one.kind != "check", one.created))
    first = {one.device: one for one in reversed(ordered)}
    told = [
        f"{device.partition(' (')[0]}: {one.way}, {_tell(one)} ({_date(one)})"
        for device, one in first.items()
    ]
    compiled = sorted({blob.platform for blob in bundle.manifest.blobs})
    told += [f"NPU {platform}: compiled, not run" for platform in compiled]
    if told and not compiled and not _ran_on_target(bundle, found):
        told.append(f"{describe_target(bundle)}: not checked")
    return "; ".join(told)


def describe_command(bundle: Bundle) -> str:
    """The command that makes such a bundle, as far as the manifest tells its options."""
    manifest, origin = bundle.manifest, bundle.manifest.origin
    target = f"--target {manifest.target}"
    if manifest.imported is not None:  # a graph's precision is its own
        return _describe_import(manifest, manifest.imported)
    models = {"hub": origin.name, "synthetic": f"synthetic:{origin.name}", "file": "FILE"}
    model = models.get(origin.kind, "FOLDER")
    words = [f"lfm2-deploy export {model} {target}"]
    words.append(f"--precision {manifest.precision} --context {manifest.context_length}")
    if any(KEPT_OF_GGUF in tensor.reason for tensor in manifest.quantization):
        words = [f"lfm2-deploy import {model} {target}"]  # `export` would round again
    words += _list_graph_options(bundle)
    rounding = manifest.rounding
    if rounding is not None and rounding.method != "search":
        words.append(f"--quantize {rounding.method}")
    if rounding is not None and rounding.max_size_bytes:
        words.append(f"--max-size {rounding.max_size_bytes}")
    if origin.kind == "hub" and origin.revision:
        words.append(f"--revision {origin.revision}")
    if origin.adapter:
        words.append("--adapter FOLDER")
    readers = [record.io for record in manifest.readers]
    if readers not in ([], ["genai"]):  # which is what nobody need ask for
        words.append(f"--io {','.join(readers)}")
    return " ".join(words)


def _describe_import(manifest: Manifest, record: ImportedRecord) -> str:
    words = [f"lfm2-deploy import {record.repository or 'SOURCE'} --target {manifest.target}"]
    words.append(f"--context {manifest.context_length}")
    if record.repository:
        words.append(f"--variant {record.file} --revision {record.revision}")
    if manifest.origin.kind == "hub" and manifest.origin.name != record.repository:
        words.append(f"--against {manifest.origin.name}")
    return " ".join(words)


def _list_graph_options(bundle: Bundle) -> list[str]:
    """Options of `export` that its graphs and files tell."""
    manifest = bundle.manifest
    words = [f"--part {manifest.origin.part}"] if manifest.origin.part else []
    words += ["--inputs-embeds"] if EMBED_FILE in manifest.files else []
    words += [f"--chunk {manifest.chunk}"] if manifest.chunk else []
    experts = {g.device for g in manifest.graphs if g.name.startswith("experts")} - {"target"}
    words += [f"--experts {device}" for device in sorted(experts)]
    platforms = sorted({blob.platform for blob in manifest.blobs})
    words += ["--compile"] if platforms else []
    return [*words, *(f"--platform {platform}" for platform in platforms)]


def describe_origin(bundle: Bundle) -> str:
    """Where the model came from, as Markdown; names are checked before they become links."""
    origin, base = bundle.manifest.origin, find_base(bundle)
    if base:
        file = origin.name.removeprefix(base).strip("/")
        of_file = f"`{escape_code(file)}` of " if file else ""
        commit = f" at commit `{escape_code(origin.revision[:12])}`" if origin.revision else ""
        text = f"{of_file}[{base}]({HUB}/{base}){commit}"
    elif origin.kind == "synthetic":
        text = f"random weights in the shape of `{escape_code(origin.name)}` (they say nothing)"
    else:
        text = f"a {origin.kind} named `{escape_code(origin.name)}`"
    if origin.part:
        text = f"the {origin.part} part of {text}"
    imported = bundle.manifest.imported
    if imported is not None:
        text += f" ({escape_code(imported.describe())})"
    adapter = f", with the adapter `{escape_code(origin.adapter)}` merged in"
    return text + (adapter if origin.adapter else "")


def escape_code(text: str) -> str:
    """Text that cannot end a `span` of code, or a table's cell."""
    line = " ".join(text.split())
    return make_visible(line).replace("`", "'").replace("|", "/")


def format_figure(figure: Figure) -> str:
    """0.02134 ± 0.00081 nats -> "0.0213 ± 0.0008 nats"."""
    scale, unit = (100.0, " %") if figure.unit == "share" else (1.0, f" {figure.unit}".rstrip())
    if figure.unit == "bytes":
        return format_bytes(round(figure.value))
    value = figure.value * scale
    if not figure.error or not math.isfinite(figure.error):
        return f"{_shorten(value)}{unit}"
    error = figure.error * scale
    digits = max(0, 1 - math.floor(math.log10(error)))
    return f"{value:.{digits}f} ± {error:.{digits}f}{unit}"


def _find_storages(bundle: Bundle) -> dict[str, Storage] | None:
    """How each tensor is stored; None where a manifest does not tell of all."""
    try:
        return expand_plan(bundle.config, bundle.manifest.quantization)
    except KeyError:
        return None


def _group(one: Measurement, is_cost: bool) -> FigureGroup:
    against = f" against {one.reference}" if one.reference else ""
    remark = f"; {one.remark}" if one.remark and is_cost else ""
    title = f"{one.kind}{against}: {one.protocol}; {one.device}, {_date(one)}{remark}"
    figures = [figure for figure in one.figures if (figure.unit in _COSTS) == is_cost]
    return FigureGroup(title, tuple((figure.name, format_figure(figure)) for figure in figures))


def _choose(found: Sequence[Measurement]) -> list[Measurement]:
    ordered = [one for kind in _ACCURACY for one in reversed(found) if one.kind == kind]
    return [one for one in ordered if one.figures]


def _describe_device(device: str, driver: str, way: str, ones: Sequence[Measurement]) -> DeviceRow:
    parts = [_tell(one) for one in sorted(ones, key=lambda one: one.created)]
    versions = {name: version for one in ones for name, version in one.versions.items()}
    ours = f"lfm2-deploy {versions['lfm2-deploy']}" if "lfm2-deploy" in versions else ""
    told = ", ".join(part for part in (driver, ours) if part)
    return DeviceRow(device, way, "; ".join(dict.fromkeys(parts)), told, max(map(_date, ones)))


def _tell(one: Measurement) -> str:
    name = _NAMES.get(one.kind, one.kind)
    reason = f" ({one.reason})" if one.reason else ""
    return f"{name} {one.outcome or 'ran'}{reason}"


def _date(one: Measurement) -> str:
    return one.created[:10]


def _share(part: float) -> str:
    """0.0823 -> "8.2 %"; never 0 for what is something."""
    return f"{100 * part:.2g} %" if part < 0.0995 else f"{100 * part:.0f} %"


def _shorten(value: float) -> str:
    return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.3g}"
