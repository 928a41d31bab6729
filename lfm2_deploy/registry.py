"""Names -> runtimes, targets and the exporter, found by import only when asked for.

This is the one place where the core names what lies outside it. An entry that cannot
be imported says which package is missing and how to get it.
"""

from __future__ import annotations

import importlib
import importlib.util
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from lfm2_deploy.errors import RuntimeUnavailableError


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

    def load(self) -> Any:
        """Import and return it.

        Raises:
            RuntimeUnavailableError: a needed package is not installed.
        """
        missing = self.missing()
        if missing:
            raise RuntimeUnavailableError(
                f"{self.summary} needs {', '.join(missing)}, which is not installed: {self.install}"
            )
        return getattr(importlib.import_module(self.module), self.attribute)


_RUN = "pip install lfm2-deploy"
_EXPORT = "pip install 'lfm2-deploy[export]'"
_TRACING = ("torch", "onnx", "onnx_ir", "onnxscript")

RUNTIMES: Mapping[str, Entry] = {
    "ort": Entry("runtimes.ort", "load", ("onnxruntime",), _RUN, "ONNX Runtime on the CPU"),
    "reference": Entry(
        "runtimes.reference", "load", ("torch",), _EXPORT, "the torch reference, in float32"
    ),
}
TARGETS: Mapping[str, Entry] = {
    "cpu": Entry("exporters.targets.cpu", "CPU", _TRACING, _EXPORT, "export for ONNX Runtime CPU"),
}
EXPORTER = Entry("exporters.pipeline", "export_checkpoint", _TRACING, _EXPORT, "exporting")
EXPORT_OPTIONS = Entry("exporters.pipeline", "ExportOptions", _TRACING, _EXPORT, "exporting")


def find_runtime(name: str) -> Any:
    """The loader of a runtime.

    Raises:
        RuntimeUnavailableError: no such runtime, or it is not installed.
    """
    return _find("runtime", RUNTIMES, name).load()


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
