"""Names -> runtimes, targets and the exporter, found by import only when asked for.

This is the one place where the core names what lies outside it. An entry that cannot
be imported says which package is missing or of the wrong version, and how to get it.
Other packages add entries of their own (`plugins`); a name of ours stays ours.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from lfm2_deploy.entry import PACKAGE, Entry, list_own_packages
from lfm2_deploy.errors import RuntimeUnavailableError, UnknownNameError
from lfm2_deploy.plugins import Kind, Plugin, find_clashes, find_fault, list_plugins
from lfm2_deploy.words import suggest

if TYPE_CHECKING:  # it imports numpy, which `doctor` and `plan` need not wait for
    from lfm2_deploy.bundle import Bundle

_RUN = "pip install lfm2-deploy"
_EXPORT = "pip install 'lfm2-deploy[export]' (in a clone: '.[export]')"
_RAY = "pip install 'lfm2-deploy[export,ray]' (in a clone: '.[export,ray]')"
_OPENVINO = "pip install 'lfm2-deploy[openvino]' (in a clone: '.[openvino]')"
_OPENVINO_EXPORT = "pip install 'lfm2-deploy[export,openvino]' (in a clone: '.[export,openvino]')"
_QNN = "pip install 'lfm2-deploy[qnn]' (in a clone: '.[qnn]')"
_EVAL = "pip install 'lfm2-deploy[eval]' (in a clone: '.[eval]')"
_SERVE = "pip install 'lfm2-deploy[serve]' (in a clone: '.[serve]')"
_TRACING = ("torch", "onnx", "onnx_ir", "onnxscript")

RUNTIMES: Mapping[str, Entry] = {
    "ort": Entry("runtimes.ort", "load", ("onnxruntime",), _RUN, "ONNX Runtime on the CPU"),
    "openvino": Entry(
        "runtimes.ov", "load", ("openvino",), _OPENVINO, "OpenVINO on NPU, GPU and CPU"
    ),
    "qnn": Entry(
        "runtimes.qnn", "load", ("onnxruntime", "onnxruntime_qnn"), _QNN, "Qualcomm's NPUs (QNN)"
    ),
    "webgpu": Entry(
        "runtimes.webgpu", "load", ("onnxruntime",), _RUN, "ONNX Runtime on any GPU, by WebGPU"
    ),
    "directml": Entry(
        "runtimes.directml", "load", ("onnxruntime",), _RUN, "ONNX Runtime on GPUs, by DirectML"
    ),
    "reference": Entry(
        "runtimes.reference", "load", ("torch",), _EXPORT, "the torch reference in float32"
    ),
}
# What `--device` takes of each of our runtimes on any computer, for completion; one of several
# devices of a kind also has a number or a name.
DEVICES: Mapping[str, tuple[str, ...]] = {
    "ort": ("cpu",),
    "openvino": ("npu", "gpu", "cpu"),
    "qnn": ("npu", "emulator", "cpu"),
    "webgpu": ("gpu", "high-performance", "low-power", "cpu"),
    "directml": ("gpu", "cpu"),
}
# Not for bundles: what `compare` and `eval` hold them against.
STREAMED_REFERENCE = Entry(
    "runtimes.streamed", "StreamedScorer", ("torch",), _EXPORT, "the streamed torch reference"
)
TRANSFORMERS = Entry(
    "runtimes.transformers_model",
    "load",
    ("torch", "transformers"),
    "pip install transformers",
    "transformers' own model",
)
# What a runtime can keep on disk to load faster: name -> prepare, remove, measure.
PREPARERS: Mapping[str, Entry] = {
    "ort": Entry("runtimes.prepared", "PREPARER", ("onnxruntime",), _RUN, "preparing weights"),
}
TARGETS: Mapping[str, Entry] = {
    "cpu": Entry("exporters.targets.cpu", "CPU", _TRACING, _EXPORT, "export for ONNX Runtime CPU"),
    "npu": Entry(
        "exporters.targets.npu", "NPU", _TRACING, _EXPORT, "export for Intel NPUs (OpenVINO)"
    ),
    "igpu": Entry(
        "exporters.targets.ov",
        "IGPU",
        (*_TRACING, "openvino"),
        _OPENVINO_EXPORT,
        "export for Intel GPUs (OpenVINO)",
    ),
    "qnn": Entry("exporters.targets.qnn", "QNN", _TRACING, _EXPORT, "export for Qualcomm NPUs"),
    "openvino-cpu": Entry(
        "exporters.targets.ov",
        "OPENVINO_CPU",
        (*_TRACING, "openvino"),
        _OPENVINO_EXPORT,
        "export for OpenVINO on the CPU",
    ),
    "directml": Entry(
        "exporters.targets.directml", "DIRECTML", _TRACING, _EXPORT, "export for DirectML (Windows)"
    ),
    "webgpu": Entry(
        "exporters.targets.webgpu", "WEBGPU", _TRACING, _EXPORT, "export for WebGPU (any GPU)"
    ),
}
# The rules of `lint`, by target: each a `lfm2_deploy.findings.Linter`.
LINTS: Mapping[str, Entry] = {
    name: Entry(f"exporters.lint.rules.{module}", attribute, ("onnx",), _EXPORT, "linting")
    for name, module, attribute in (
        ("cpu", "cpu", "CPU"),
        ("npu", "npu", "NPU"),
        ("igpu", "openvino", "IGPU"),
        ("openvino-cpu", "openvino", "OPENVINO_CPU"),
        ("directml", "directml", "DIRECTML"),
        ("webgpu", "webgpu", "WEBGPU"),
        ("qnn", "qnn", "QNN"),
    )
}
# What people call targets that are called otherwise here.
_HINTS = {
    **dict.fromkeys(("gpu", "vulkan", "cuda", "nvidia", "amd", "metal"), "webgpu"),
    **dict.fromkeys(("dml", "windowsml", "winml"), "directml"),
    **dict.fromkeys(("openvino", "intel"), "igpu, npu or openvino-cpu"),
    **dict.fromkeys(("qualcomm", "snapdragon", "htp"), "qnn"),
}
# What compiles a target's graphs ahead of time, given platforms; Intel's is below.
GRAPH_COMPILERS: Mapping[str, Entry] = {
    "qnn": Entry(
        "runtimes.qnn_contexts",
        "make_compiler",
        ("onnxruntime", "onnxruntime_qnn"),
        _QNN,
        "compiling for Qualcomm's NPUs",
    ),
}
# Whether this machine can run a target: name -> `probe() -> contracts.Probe`, run in a child.
_ORT_PROBES = ("onnxruntime",)
PROBES: Mapping[str, Entry] = {
    "igpu": Entry("runtimes.probes", "probe_igpu", ("openvino",), _OPENVINO, "looking for GPUs"),
    "directml": Entry("runtimes.probes", "probe_directml", _ORT_PROBES, _RUN, "looking for GPUs"),
    "webgpu": Entry("runtimes.probes", "probe_webgpu", _ORT_PROBES, _RUN, "looking for GPUs"),
    "npu": Entry("runtimes.probes", "probe_npu", ("openvino",), _OPENVINO, "looking for NPUs"),
    "qnn": Entry("runtimes.probes", "probe_qnn", _ORT_PROBES, _RUN, "looking for NPUs"),
    "cpu": Entry("runtimes.probes", "probe_cpu", _ORT_PROBES, _RUN, "ONNX Runtime on the CPU"),
}
# Calls any of them, of ours or of others; needs no package itself.
PROBE_CALL = Entry("runtimes.probes", "probe_in_child", (), _RUN, "probing")
# What ONNX Runtime and Vulkan find on this machine, for `doctor`; run in a child.
ORT_DEVICES = Entry(
    "runtimes.device_check", "list_providers", _ORT_PROBES, _RUN, "ONNX Runtime's devices"
)
ORT_NAMES = Entry(
    "runtimes.device_check", "list_provider_names", _ORT_PROBES, _RUN, "ONNX Runtime's devices"
)
ORT_CHECK = Entry(
    "runtimes.device_check", "check_device", _ORT_PROBES, _RUN, "ONNX Runtime's devices"
)
VULKAN = Entry("runtimes.vulkan", "examine_vulkan", (), _RUN, "Vulkan's adapters")
NPU_COMPILER = Entry(
    "runtimes.npu_compiler.bundles",
    "compile_graphs",
    ("openvino",),
    _OPENVINO,
    "compiling for NPUs",
)
NPU_BLOBS = Entry(
    "runtimes.npu_compiler.bundles", "add_blobs", ("openvino",), _OPENVINO, "compiling for NPUs"
)
NPU_COMPILER_SET_UP = Entry(
    "runtimes.npu_compiler.wine", "set_up", (), _RUN, "setting up the NPU compiler"
)
NPU_PLATFORM_CHECK = Entry(
    "runtimes.npu_compiler.compiler", "check_platform", (), _RUN, "NPU platforms"
)
NPU_COMPILER_FINDER = Entry(
    "runtimes.npu_compiler.compiler", "find_compiler", (), _RUN, "finding the NPU compiler"
)
# What OpenVINO finds on this machine, for `doctor`.
OPENVINO_DEVICES = Entry(
    "runtimes.ov_doctor", "examine_devices", ("openvino",), _OPENVINO, "OpenVINO's devices"
)
# Keeps answers within a `Grammar`.
GRAMMAR_COMPILER = Entry(
    "lfm2_deploy.guidance", "compile_grammar", ("llguidance",), _SERVE, "following a grammar"
)
SERVER = Entry(
    "lfm2_deploy.server.app",
    "make_app",
    ("fastapi", "prometheus_client", "sse_starlette", "uvicorn"),
    _SERVE,
    "serving",
)
GRAMMAR_CHECK = Entry(
    "lfm2_deploy.guidance", "check_grammar", ("llguidance",), _SERVE, "following a grammar"
)
# lm-evaluation-harness: loading tasks, running them, and listing all there are.
TASK_LOADER, EVALUATOR, TASK_NAMES = (
    Entry("lfm2_deploy.evaluation.harness", function, ("lm_eval",), _EVAL, "eval")
    for function in ("load_tasks", "evaluate", "list_names")
)
CLUSTER = Entry(
    "exporters.cluster", "use_cluster", (*_TRACING, "ray"), _RAY, "exporting on a cluster"
)
CLUSTER_RECIPE = Entry(
    "exporters.cluster", "Recipe", (*_TRACING, "ray"), _RAY, "exporting on a cluster"
)
# Pure arithmetic: it needs nothing that running does not.
PLANNER = Entry("exporters.quantize.plan", "plan_tensors", (), _RUN, "planning")
READERS = Entry("exporters.readers.reader", "READERS", (), _RUN, "other programs")
ROUNDING_METHODS = Entry("exporters.quantize.methods", "METHODS", (), _RUN, "rounding")
EXPORTER = Entry("exporters.pipeline", "export_checkpoint", _TRACING, _EXPORT, "exporting")
EXPORT_OPTIONS = Entry("exporters.options", "ExportOptions", _TRACING, _EXPORT, "exporting")


def list_entries(kind: Kind) -> dict[str, Entry]:
    """What there is of a kind: our own, then other packages', by name.

    Raises nothing: names that clash are left out, and `list_problems` tells of them.
    """
    own, plugins = _own(kind), list_plugins(kind)
    clashes = find_clashes(plugins)
    usable = [p for p in plugins if p.name not in {*own, *clashes} and find_fault(p) is None]
    return {**own, **{plugin.name: _as_entry(plugin) for plugin in usable}}


def list_problems(kind: Kind) -> list[str]:
    """What is wrong with other packages' entries of a kind, without importing them."""
    own, plugins = _own(kind), list_plugins(kind)
    faults = [fault for plugin in plugins if (fault := find_fault(plugin)) is not None]
    taken = [
        f"{plugin.describe()} is not used: {PACKAGE} has a {kind} of that name; "
        f"uninstall {plugin.package}, or ask its makers for another name"
        for plugin in plugins
        if plugin.name in own
    ]
    return [*faults, *taken, *find_clashes(tuple(p for p in plugins if p.name not in own)).values()]


def find_entry(kind: Kind, name: str) -> Entry:
    """The entry of that name; other packages are looked at only if it is not ours.

    Raises:
        RuntimeUnavailableError: there is none, or several packages offer it.
    """
    own = _own(kind)
    if name in own:
        return own[name]
    clash = find_clashes(list_plugins(kind)).get(name)
    if clash is not None:
        raise RuntimeUnavailableError(clash)
    entries = list_entries(kind)
    if name not in entries:
        hint = f"; for {name} try {_HINTS[name]}" if kind == "target" and name in _HINTS else ""
        auto = ", or auto" if kind == "target" else ""
        hint = hint or suggest(name, entries)
        raise UnknownNameError(
            f"there is no {kind} {name!r}: expected one of {', '.join(entries)}{auto}{hint}"
        )
    return entries[name]


def find_package(kind: Kind, name: str) -> str:
    """The package of somebody else that brings it; "" where it is our own, or there is none."""
    try:
        return find_entry(kind, name).package
    except RuntimeUnavailableError:
        return ""


def _own(kind: Kind) -> Mapping[str, Entry]:
    own: dict[Kind, Mapping[str, Entry]] = {
        "runtime": RUNTIMES,
        "target": TARGETS,
        "set of lint rules": LINTS,
        "probe": PROBES,
    }
    return own.get(kind, {})


def _as_entry(plugin: Plugin) -> Entry:
    return Entry(
        plugin.module,
        plugin.attribute,
        (),
        f"pip install --upgrade {plugin.package}",
        plugin.describe(),
        plugin.package,
    )


def find_runtime(name: str) -> Any:
    """The loader of a runtime.

    Raises:
        RuntimeUnavailableError: no such runtime, or it is not installed.
    """
    entry = find_entry("runtime", name)
    load = entry.load()
    if not callable(load):
        raise RuntimeUnavailableError(
            f"{entry.summary} is {type(load).__name__}, expected a function "
            f"load(bundle, *, threads, device): {entry.install}"
        )
    return load


def find_runtime_of(bundle: Bundle, name: str | None = None) -> Any:
    """As `find_runtime`, of the runtime that a bundle was made for where none is named.

    Raises:
        RuntimeUnavailableError: no such runtime; says which package the bundle was made with.
    """
    asked = name or bundle.manifest.runtime
    offered = {*RUNTIMES, *(plugin.name for plugin in list_plugins("runtime"))}
    if name is None and asked not in offered:
        own = {*list_own_packages(), PACKAGE}
        others = [f"{p} {v}" for p, v in bundle.manifest.made_with.items() if p not in own]
        made = f"; it was made with {', '.join(others)}" if others else ""
        raise RuntimeUnavailableError(
            f"{bundle.path} was made for runtime {asked!r}, which no installed package brings "
            f"(there are {', '.join(RUNTIMES)}): install the one that does{made}"
        )
    return find_runtime(asked)


def find_preparer(name: str) -> Any:
    """What prepares bundles for a runtime: a `contracts.Preparer`.

    Raises:
        RuntimeUnavailableError: that runtime prepares nothing, or is not installed.
    """
    if name not in PREPARERS:
        raise RuntimeUnavailableError(
            f"runtime {name!r} keeps nothing prepared: there is nothing to do"
        )
    return PREPARERS[name].load()


def find_target(name: str) -> Any:
    """An export target.

    Raises:
        RuntimeUnavailableError: no such target, or exporting is not installed.
    """
    entry = find_entry("target", name)
    target = entry.load()
    # The manifest holds the name, and inspect, doctor and auto look it up again.
    if getattr(target, "name", None) != name or not hasattr(target, "precisions"):
        raise RuntimeUnavailableError(
            f"{entry.summary} is {type(target).__name__} "
            f"{getattr(target, 'name', 'without a name')!r}, expected an "
            f"exporters.targets.target.Target named {name!r}: {entry.install}"
        )
    return target


def find_lint(name: str) -> Any:
    """The rules of a target: a `lfm2_deploy.findings.Linter`.

    Raises:
        RuntimeUnavailableError: there are none, or exporting is not installed.
    """
    entry = find_entry("set of lint rules", name)
    rules = entry.load()
    if not hasattr(rules, "lint") or not hasattr(rules, "suffixes"):
        raise RuntimeUnavailableError(
            f"{entry.summary} is {type(rules).__name__}, expected an "
            f"exporters.lint.rule.RuleSet: {entry.install}"
        )
    return rules
