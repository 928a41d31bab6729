"""`lfm2-deploy doctor`: what this computer has, what works, and what would make more work."""

from __future__ import annotations

import os
import shutil
from collections.abc import Mapping
from dataclasses import asdict
from importlib import metadata
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.text import Text

from lfm2_deploy.commands.console import (
    format_bytes,
    output,
    print_facts,
    print_json,
    print_title,
)
from lfm2_deploy.commands.options import AsJson
from lfm2_deploy.machine import Machine, describe_machine

if TYPE_CHECKING:
    from lfm2_deploy.registry import Entry

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
# Wheels of other flavours (-gpu, -directml, -openvino) overwrite each other's files.
_SHARED_IMPORT = "onnxruntime"
_HUB = "https://huggingface.co"
_HUB_SECONDS = 5
_UNKNOWN = "unknown"


def doctor(
    online: Annotated[
        bool, typer.Option("--online", help="Also ask whether the Hub can be reached.")
    ] = False,
    as_json: AsJson = False,
) -> None:
    """Say what this computer has, what works on it, and what is missing.

    \b
    Examples:
      lfm2-deploy doctor
      lfm2-deploy doctor --online --json
    """
    report = _examine(online)
    if as_json:
        print_json(report)
    else:
        _print(report)


def _examine(online: bool) -> dict[str, Any]:
    from lfm2_deploy.registry import RUNTIMES, TARGETS

    return {
        "python": _describe_python(),
        "packages": {name: _find_version(name) for name in _PACKAGES},
        "conflicts": find_conflicts(metadata.packages_distributions()),
        "machine": asdict(describe_machine()),
        "disk_free_bytes": shutil.disk_usage(os.getcwd()).free,
        "runtimes": {name: _describe_entry(entry) for name, entry in RUNTIMES.items()},
        "targets": {name: _describe_entry(entry) for name, entry in TARGETS.items()},
        "openvino": _examine_openvino(),
        "hub": _reach_hub() if online else None,
    }


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


def find_conflicts(distributions: Mapping[str, list[str]]) -> list[str]:
    """Packages that all provide the module `onnxruntime`, where there are several.

    Args:
        distributions: import name -> packages, as `packages_distributions` gives them.
    """
    providers = sorted({name.lower() for name in distributions.get(_SHARED_IMPORT, [])})
    return providers if len(providers) > 1 else []


def _describe_entry(entry: Entry) -> dict[str, Any]:
    missing, mismatched = list(entry.missing()), list(entry.mismatched())
    available = not missing and not mismatched
    return {
        "summary": entry.summary,
        "available": available,
        "missing": missing,
        "mismatched": mismatched,
        "remedy": None if available else entry.install,
    }


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


def _print(report: Mapping[str, Any]) -> None:
    print_title("Computer")
    print_facts(_list_machine(Machine(**report["machine"]), report["disk_free_bytes"]))
    output().print()
    print_title("Packages", report["python"])
    packages = report["packages"].items()
    print_facts({name: version or Text("not installed", "dim") for name, version in packages})
    if report["conflicts"]:
        print_facts({"conflict": Text(_explain_conflict(report["conflicts"]), "bold red")})
    for title in ("Runtimes", "Targets"):
        output().print()
        print_title(title)
        entries = report[title.lower()].items()
        print_facts({name: _explain_entry(entry) for name, entry in entries})
    if report["openvino"] is not None:
        output().print()
        print_title("Devices", f"OpenVINO {report['openvino']['version']}")
        print_facts(_list_devices(report["openvino"]))
    output().print()
    print_title("Hub")
    print_facts({"": _explain_hub(report["hub"])})


def _list_machine(machine: Machine, disk_free: int) -> dict[str, str | Text]:
    def size(value: int | None) -> str:
        return _UNKNOWN if value is None else format_bytes(value)

    cores = f"{machine.physical_cores or _UNKNOWN} physical, {machine.logical_cores} logical"
    if machine.usable_cores != machine.logical_cores:
        cores += f", {machine.usable_cores} usable by this process"
    absent = f" (not {', '.join(machine.not_found)})" if machine.not_found else ""
    return {
        "system": machine.system,
        "processor": machine.cpu or _UNKNOWN,
        "cores": cores,
        "instructions": Text.assemble(", ".join(machine.instructions) or _UNKNOWN, (absent, "dim")),
        "memory": f"{size(machine.memory_total_bytes)}, of which available "
        f"{size(machine.memory_available_bytes)}",
        "disk": f"{format_bytes(disk_free)} free here",
    }


def _explain_conflict(providers: list[str]) -> str:
    return (
        f"{', '.join(providers)} all install the module {_SHARED_IMPORT}, and the last one wins: "
        f"pip uninstall {' '.join(providers)}, then install one of them again"
    )


def _explain_entry(entry: Mapping[str, Any]) -> Text:
    if entry["available"]:
        return Text.assemble(("ready", "green"), f"  {entry['summary']}")
    needed = [*filter(None, [", ".join(entry["missing"])]), *entry["mismatched"]]
    return Text.assemble(
        ("missing" if entry["missing"] else "unfit", "yellow"),
        f"  {entry['summary']}: needs {'; '.join(needed)}; {entry['remedy']}",
    )


def _list_devices(openvino: Mapping[str, Any]) -> dict[str, Text]:
    facts = {record["name"]: _explain_device(record) for record in openvino["devices"]}
    compiler = openvino["npu_compiler"]
    facts["NPU compiler"] = (
        Text.assemble(("ready", "green"), "  for `compile` and `export --compile`")
        if compiler["available"]
        else Text.assemble(("missing", "yellow"), f"  {compiler['remedy']}")
    )
    return facts


def _explain_device(record: Mapping[str, Any]) -> Text:
    if not record["found"]:
        return Text.assemble(("not found", "yellow"), f"  {record['remedy']}")
    driver = f", driver {record['driver']}" if record["driver"] else ""
    text = f"  {record['full_name']}{driver}; runs {record['targets']}"
    return Text.assemble(("ready", "green"), text)


def _explain_hub(hub: Mapping[str, Any] | None) -> Text:
    if hub is None:
        return Text("not asked; --online does", "dim")
    if hub["reachable"]:
        return Text.assemble(("reachable", "green"), f"  {hub['url']}")
    return Text.assemble(("not reachable", "yellow"), f"  {hub['url']}: {hub['reason']}")
