"""Names -> runtimes, targets and the exporter, found by import only when asked for.

This is the one place where the core names what lies outside it. An entry that cannot
be imported says which package is missing or of the wrong version, and how to get it.
"""

from __future__ import annotations

import importlib
import importlib.util
from collections.abc import Mapping
from dataclasses import dataclass
from importlib import metadata
from types import ModuleType
from typing import Any

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from packaging.version import InvalidVersion, Version

from lfm2_deploy.errors import RuntimeUnavailableError

_PACKAGE = "lfm2-deploy"
_EXTRAS = ("", "export", "openvino", "qnn", "ray")
# An import error in one of these is a bug of ours, not a broken installation.
_OWN = {"lfm2_deploy", "exporters", "runtimes"}


@dataclass(frozen=True, slots=True)
class Entry:
    """Where something lives and what it needs.

    Args:
        module: module to import.
        attribute: what to take from it.
        needs: import names of the packages it cannot do without.
        install: the command that brings them.
        summary: one line for `doctor`.
    """

    module: str
    attribute: str
    needs: tuple[str, ...]
    install: str
    summary: str

    def missing(self) -> tuple[str, ...]:
        """Which of the needed packages are not installed."""
        return tuple(name for name in self.needs if importlib.util.find_spec(name) is None)

    def mismatched(self) -> tuple[str, ...]:
        """What is installed in a version this package does not take.

        Returns:
            Words such as "torch==2.13.0, found 2.5.1".
        """
        found = (_compare_version(requirement) for requirement in _list_requirements(self.needs))
        return tuple(words for words in found if words is not None)

    def load(self) -> Any:
        """Import and return it.

        Raises:
            RuntimeUnavailableError: a needed package is not installed, is of the wrong
                version, or does not load.
        """
        missing = self.missing()
        if missing:
            raise RuntimeUnavailableError(
                f"{self.summary} needs {', '.join(missing)}, which is not installed: {self.install}"
            )
        mismatched = self.mismatched()
        if mismatched:
            raise RuntimeUnavailableError(
                f"{self.summary} needs {'; '.join(mismatched)}: {self.install}"
            )
        return getattr(self._import(), self.attribute)

    def _import(self) -> ModuleType:
        try:
            return importlib.import_module(self.module)
        except (ImportError, OSError) as error:  # OSError: torch, where a library is absent
            if _is_own(error):
                raise
            among = "one of " if len(self.needs) > 1 else ""
            raise RuntimeUnavailableError(
                f"{self.summary} needs {among}{', '.join(self.needs)}, which is installed but "
                f"does not load ({' '.join(str(error).split())}): {self.install} --force-reinstall"
            ) from error


def _is_own(error: ImportError | OSError) -> bool:
    name = error.name if isinstance(error, ImportError) else None
    return (name or "").partition(".")[0] in _OWN


def _list_requirements(names: tuple[str, ...]) -> list[Requirement]:
    """What this package requires of others, given by their import names."""
    wanted = {canonicalize_name(name) for name in names}
    try:
        declared = metadata.requires(_PACKAGE) or []
    except metadata.PackageNotFoundError:  # run from a folder, without being installed
        return []
    requirements = map(Requirement, declared)
    return [r for r in requirements if canonicalize_name(r.name) in wanted and _applies(r)]


def _applies(requirement: Requirement) -> bool:
    marker = requirement.marker
    return marker is None or any(marker.evaluate({"extra": extra}) for extra in _EXTRAS)


def _compare_version(requirement: Requirement) -> str | None:
    """What is wrong with the installed version; None if nothing is, or none is known."""
    try:
        found = Version(metadata.version(requirement.name))
        fits = requirement.specifier.contains(found, prereleases=True)
    except (metadata.PackageNotFoundError, InvalidVersion):
        return None  # a wheel of another name provides the module, or a build of one's own
    return None if fits else f"{requirement.name}{requirement.specifier}, found {found}"


_RUN = "pip install lfm2-deploy"
_EXPORT = "pip install 'lfm2-deploy[export]' (in a clone: '.[export]')"
_RAY = "pip install 'lfm2-deploy[export,ray]' (in a clone: '.[export,ray]')"
_OPENVINO = "pip install 'lfm2-deploy[openvino]' (in a clone: '.[openvino]')"
_OPENVINO_EXPORT = "pip install 'lfm2-deploy[export,openvino]' (in a clone: '.[export,openvino]')"
_QNN = "pip install 'lfm2-deploy[qnn]' (in a clone: '.[qnn]')"
_TRACING = ("torch", "onnx", "onnx_ir", "onnxscript")

RUNTIMES: Mapping[str, Entry] = {
    "ort": Entry("runtimes.ort", "load", ("onnxruntime",), _RUN, "ONNX Runtime on the CPU"),
    "openvino": Entry(
        "runtimes.ov", "load", ("openvino",), _OPENVINO, "OpenVINO on NPU, GPU and CPU"
    ),
    "qnn": Entry(
        "runtimes.qnn", "load", ("onnxruntime", "onnxruntime_qnn"), _QNN, "Qualcomm's NPUs (QNN)"
    ),
    "reference": Entry(
        "runtimes.reference", "load", ("torch",), _EXPORT, "the torch reference, in float32"
    ),
}
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
CLUSTER = Entry(
    "exporters.cluster", "use_cluster", (*_TRACING, "ray"), _RAY, "exporting on a cluster"
)
CLUSTER_RECIPE = Entry(
    "exporters.cluster", "Recipe", (*_TRACING, "ray"), _RAY, "exporting on a cluster"
)
# Pure arithmetic: it needs nothing that running does not.
PLANNER = Entry("exporters.quantize.plan", "plan_tensors", (), _RUN, "planning")
EXPORTER = Entry("exporters.pipeline", "export_checkpoint", _TRACING, _EXPORT, "exporting")
EXPORT_OPTIONS = Entry("exporters.pipeline", "ExportOptions", _TRACING, _EXPORT, "exporting")


def find_runtime(name: str) -> Any:
    """The loader of a runtime.

    Raises:
        RuntimeUnavailableError: no such runtime, or it is not installed.
    """
    return _find("runtime", RUNTIMES, name).load()


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
    return _find("target", TARGETS, name).load()


def _find(kind: str, entries: Mapping[str, Entry], name: str) -> Entry:
    if name not in entries:
        raise RuntimeUnavailableError(
            f"there is no {kind} {name!r}: expected one of {', '.join(entries)}"
        )
    return entries[name]
