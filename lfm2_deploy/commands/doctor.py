"""`lfm2-deploy doctor`: what this computer has, what works, and what would make more work."""

from __future__ import annotations

import os
import shutil
from collections.abc import Mapping
from dataclasses import asdict
from importlib import metadata
from typing import TYPE_CHECKING, Annotated, Any

import typer

from lfm2_deploy.child import call_in_child
from lfm2_deploy.commands.console import print_json
from lfm2_deploy.commands.options import AsJson
from lfm2_deploy.commands.ort_wheels import PURPOSES, find_conflicts
from lfm2_deploy.machine import describe_machine

if TYPE_CHECKING:
    from lfm2_deploy.entry import Entry

_PACKAGES = (
    "lfm2-deploy",
    "onnxruntime",
    "openvino",
    "openvino-tokenizers",
    "openvino-genai",
    "numpy",
    "tokenizers",
    "torch",
    "onnx",
    "onnx-ir",
    "onnxscript",
    "huggingface_hub",
    "transformers",
    "onnxruntime-genai",
)
# Told where they are installed, and no matter otherwise.
_RARE_PACKAGES = (
    *(name for name in PURPOSES if name not in _PACKAGES),
    "onnxruntime-ep-webgpu",
    "onnxruntime-ep-openvino",
    "windowsml",
)
_HUB = "https://huggingface.co"
_HUB_SECONDS = 5
# Importing torch, as targets do, takes seconds where nothing of it is cached.
_PLUGIN_SECONDS = 60.0


def doctor(
    online: Annotated[
        bool, typer.Option("--online", help="Also ask whether the Hugging Face Hub can be reached.")
    ] = False,
    as_json: AsJson = False,
) -> None:
    """Say what this computer has, what works on it, and what is missing.

    Every device is really tried with a tiny graph, which takes some seconds. What is
    missing is told with the command that brings it. A good first part of a bug report.

    \b
    Examples:
      lfm2-deploy doctor
      lfm2-deploy doctor --online --json

    \b
    See also:
      lfm2-deploy export MODEL --target auto     a bundle for what was found
      lfm2-deploy check BUNDLE                   a bundle on a device
    """
    report = _examine(online)
    if as_json:
        print_json(report)
    else:
        from lfm2_deploy.commands.doctor_report import print_report

        print_report(report)


def _examine(online: bool) -> dict[str, Any]:
    from lfm2_deploy.commands.doctor_devices import examine_auto, examine_ort, examine_vulkan
    from lfm2_deploy.contracts import NOT_RUN
    from lfm2_deploy.registry import list_entries

    vulkan, auto = examine_vulkan(), examine_auto()
    idle = {found["target"]: found for found in auto if found["checked"] == NOT_RUN}
    rare = {name: version for name in _RARE_PACKAGES if (version := _find_version(name))}
    return {
        "python": _describe_python(),
        "packages": {**{name: _find_version(name) for name in _PACKAGES}, **rare},
        "conflicts": find_conflicts(metadata.packages_distributions()),
        "machine": asdict(describe_machine()),
        "disk_free_bytes": shutil.disk_usage(os.getcwd()).free,
        "runtimes": {
            name: {**_describe_entry(entry), "no_device": _describe_idle(idle.get(name))}
            for name, entry in list_entries("runtime").items()
        },
        "targets": {name: _describe_entry(e) for name, e in list_entries("target").items()},
        "plugin_problems": _list_plugin_problems(),
        "openvino": _examine_openvino(),
        "onnxruntime": examine_ort(vulkan),
        "vulkan": vulkan,
        "auto": auto,
        "hub": _reach_hub() if online else None,
    }


def _describe_idle(candidate: Mapping[str, Any] | None) -> str | None:
    """Why a runtime called as a target has no device here; None where it has one."""
    if candidate is None:
        return None
    return ": ".join(filter(None, [candidate["device"], candidate["reason"]]))


def _list_plugin_problems() -> list[str]:
    """Names of other packages' parts that clash or cannot be used."""
    from lfm2_deploy.plugins import GROUPS
    from lfm2_deploy.registry import list_problems

    return [problem for kind in GROUPS for problem in list_problems(kind)]


def _examine_openvino() -> dict[str, Any] | None:
    """OpenVINO's devices; None where it is not installed, or does not load."""
    from lfm2_deploy.errors import RuntimeUnavailableError
    from lfm2_deploy.registry import OPENVINO_DEVICES

    try:
        examined: dict[str, Any] = OPENVINO_DEVICES.load()()
    except RuntimeUnavailableError:
        return None  # the runtimes' lines say what is missing
    return examined


def _describe_python() -> str:
    import platform

    return f"{platform.python_implementation()} {platform.python_version()}"


def _find_version(package: str) -> str | None:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


def _describe_entry(entry: Entry) -> dict[str, Any]:
    missing, mismatched = list(entry.missing()), list(entry.mismatched())
    fault = _try_plugin(entry) if entry.package else None
    available = not missing and not mismatched and fault is None
    return {
        "summary": entry.summary,
        "package": entry.package or "lfm2-deploy",
        "available": available,
        "missing": missing,
        "mismatched": mismatched,
        "fault": fault,
        "remedy": None if available else entry.install,
    }


def _try_plugin(entry: Entry) -> str | None:
    """Why somebody else's part cannot be used; what it needs, it alone knows.

    It is tried in a process of its own: what it loads may end or crash that.
    """
    place = {key: value for key, value in asdict(entry).items() if key != "needs"}
    answer = call_in_child("lfm2_deploy.entry", "find_plugin_fault", place, seconds=_PLUGIN_SECONDS)
    if answer.failure is not None:
        return entry.explain_fault(answer.failure)
    fault: str | None = answer.value
    return fault


def _reach_hub() -> dict[str, Any]:
    from urllib import error, request

    url = os.environ.get("HF_ENDPOINT") or _HUB
    try:
        with request.urlopen(request.Request(url, method="HEAD"), timeout=_HUB_SECONDS):
            return {"url": url, "reachable": True, "reason": None}
    except error.HTTPError:  # it answered, if only to refuse
        return {"url": url, "reachable": True, "reason": None}
    except (OSError, ValueError) as failure:
        reason = getattr(failure, "reason", failure)
        return {"url": url, "reachable": False, "reason": str(reason)}
