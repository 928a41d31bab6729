"""What `doctor` found, for people: one line a thing, with what to do where it does not work."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from rich.text import Text

from lfm2_deploy.auto import Candidate
from lfm2_deploy.commands.auto_report import print_choice
from lfm2_deploy.commands.columns import Line, print_lines
from lfm2_deploy.commands.console import format_bytes, output, print_facts, print_title
from lfm2_deploy.commands.ort_wheels import explain_conflict, explain_purpose
from lfm2_deploy.machine import Machine

_UNKNOWN = "unknown"


def print_report(report: Mapping[str, Any]) -> None:
    """Write everything that `doctor` found out."""
    print_title("Computer")
    print_facts(_list_machine(Machine(**report["machine"]), report["disk_free_bytes"]))
    _print_packages(report)
    _begin("Runtimes")
    print_lines([_explain_runtime(*item) for item in report["runtimes"].items()])
    _begin("Targets")
    print_lines([_explain_entry(*item) for item in report["targets"].items()])
    if report["plugin_problems"]:
        _begin("Plugins")
        print_lines([Line("", "clash", "red", text) for text in report["plugin_problems"]])
    if report["openvino"] is not None:
        _begin("Devices", f"OpenVINO {report['openvino']['version']}")
        print_lines(_list_openvino(report["openvino"]))
    if report["onnxruntime"] is not None:
        _begin("Devices", f"ONNX Runtime {report['onnxruntime']['version'] or ''}")
        print_lines(_list_ort(report["onnxruntime"]))
    if report["vulkan"] is not None:
        _begin("Vulkan")
        print_lines(_list_vulkan(report["vulkan"]))
    _print_auto(report["auto"])
    _begin("Hub")
    print_facts({"": _explain_hub(report["hub"])})


def _begin(title: str, remark: str = "") -> None:
    output().print()
    print_title(title, remark)


def _print_packages(report: Mapping[str, Any]) -> None:
    _begin("Packages", report["python"])
    packages = report["packages"].items()
    print_facts({name: version or Text("not installed", "dim") for name, version in packages})
    for module, providers in report["conflicts"].items():
        text = explain_conflict(module, providers)
        choices = [Line("", name, "", explain_purpose(name)) for name in providers]
        print_lines([Line("", "conflict", "bold red", text), *choices])


def _print_auto(candidates: list[dict[str, Any]]) -> None:
    found = [Candidate(**record) for record in candidates]
    chosen = [candidate.target for candidate in found if candidate.outcome == "chosen"]
    choice = f"would choose {chosen[0]}" if chosen else "would choose nothing"
    _begin("Auto", f"--target auto {choice} for a dense model in int4")
    if found:
        print_choice(found)


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


def _explain_runtime(name: str, entry: Mapping[str, Any]) -> Line:
    """Of a runtime called as its target: whether there is a device, besides the packages."""
    if entry["available"] and entry["no_device"] is not None:
        return Line(name, "no device", "yellow", f"{entry['summary']}: {entry['no_device']}")
    return _explain_entry(name, entry)


def _explain_entry(name: str, entry: Mapping[str, Any]) -> Line:
    if entry["available"]:
        return Line(name, "ready", "green", entry["summary"])
    if entry["fault"] is not None:
        return Line(name, "broken", "red", entry["fault"])
    needed = [*filter(None, [", ".join(entry["missing"])]), *entry["mismatched"]]
    status = "missing" if entry["missing"] else "unfit"
    text = f"{entry['summary']}: needs {'; '.join(needed)}; {entry['remedy']}"
    return Line(name, status, "yellow", text)


def _list_openvino(openvino: Mapping[str, Any]) -> list[Line]:
    compiler = openvino["npu_compiler"]
    last = (
        Line("NPU compiler", "ready", "green", "for `compile` and `export --compile`")
        if compiler["available"]
        else Line("NPU compiler", "missing", "yellow", compiler["remedy"])
    )
    return [*map(_explain_openvino_device, openvino["devices"]), last]


def _explain_openvino_device(record: Mapping[str, Any]) -> Line:
    if not record["found"]:
        return Line(record["name"], "not found", "yellow", record["remedy"])
    driver = f", driver {record['driver']}" if record["driver"] else ""
    text = f"{record['full_name']}{driver}; runs {record['targets']}"
    return Line(record["name"], "ready", "green", text)


def _list_ort(found: Mapping[str, Any]) -> list[Line]:
    if found["failure"] is not None:
        return [Line("onnxruntime", "broken", "red", found["failure"])]
    lines = [_explain_ort_device(device) for device in found["devices"]]
    lines += [Line(name, "broken", "red", why) for name, why in found["failures"].items()]
    offer = "Windows ML offers it, and downloads it when a device of it is asked for by name"
    return lines + [Line(name, "offered", "dim", offer) for name in found["offered"]]


def _explain_ort_device(device: Mapping[str, Any]) -> Line:
    name, what = device["name"], device["description"] or device["kind"]
    if not device["runs"]:
        remedy = f"; {device['remedy']}" if device["remedy"] else ""
        text = f"{what}: listed, but does not load: {device['reason']}{remedy}"
        return Line(name, "fails", "red", text)
    if device["is_software"]:
        text = f"{what}: computes on the CPU, so it serves for tests only; {device['reason']}"
        return Line(name, "software", "yellow", text)
    return Line(name, "ready", "green", f"{what}; {device['reason']}")


def _list_vulkan(vulkan: Mapping[str, Any]) -> list[Line]:
    lines = [
        Line(
            "adapter",
            "software" if adapter["is_software"] else "found",
            "yellow" if adapter["is_software"] else "green",
            f"{adapter['name']}, {adapter['driver']}".rstrip(", "),
        )
        for adapter in vulkan["adapters"]
    ]
    problems = vulkan["problems"]
    lines += [Line("", "problem", "yellow", f"{p['what']}: {p['remedy']}") for p in problems]
    return lines or [Line("adapter", "not found", "yellow", "Vulkan lists none")]


def _explain_hub(hub: Mapping[str, Any] | None) -> Text:
    if hub is None:
        return Text("not asked; --online does", "dim")
    if hub["reachable"]:
        return Text.assemble(("reachable", "green"), f"  {hub['url']}")
    return Text.assemble(("not reachable", "yellow"), f"  {hub['url']}: {hub['reason']}")
