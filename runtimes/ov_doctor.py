"""What OpenVINO finds on this machine, what each device could run, and why one is not found."""

from __future__ import annotations

import glob
import os
import sys
from typing import Any

import openvino as ov

from lfm2_deploy.errors import RuntimeUnavailableError
from runtimes.npu_compiler.compiler import find_compiler
from runtimes.ov_device import REMEDIES, list_devices, version

_TARGETS = {"NPU": "npu", "GPU": "igpu", "CPU": "openvino-cpu, and others with --device cpu"}
# Where Linux shows the device itself, whatever the drivers above it.
_FILES = {"NPU": "/dev/accel/accel*", "GPU": "/dev/dri/renderD*"}
# Properties that tell a driver's version, by kind of device.
_DRIVERS = {"NPU": "NPU_DRIVER_VERSION", "GPU": "GPU_DRIVER_VERSION"}


def examine_devices() -> dict[str, Any]:
    """OpenVINO's version, a record for each device, and whether there is an NPU compiler.

    Returns:
        `version`; `devices`, each with `name`, `found`, `full_name`, `driver`, `targets` and
        `remedy` (None where it is found); `npu_compiler`: `available` and `remedy`.
    """
    found = list_devices()
    records = [
        {
            "name": device.name,
            "found": True,
            "full_name": device.full_name,
            "driver": _find_driver(device.name, device.kind),
            "targets": _TARGETS.get(device.kind, ""),
            "remedy": None,
        }
        for device in found
    ]
    absent = [kind for kind in REMEDIES if kind not in {device.kind for device in found}]
    records += [
        {
            "name": kind,
            "found": False,
            "full_name": None,
            "driver": None,
            "targets": _TARGETS[kind],
            "remedy": _explain_absence(kind),
        }
        for kind in absent
    ]
    return {"version": version(), "devices": records, "npu_compiler": _find_compiler()}


def _find_driver(name: str, kind: str) -> str | None:
    key = _DRIVERS.get(kind)
    if key is None:
        return None
    try:
        return str(ov.Core().get_property(name, key))
    except RuntimeError:  # a plugin older or newer than the property
        return None


def _explain_absence(kind: str) -> str:
    """The remedy, and what the system itself says of the device."""
    pattern = _FILES.get(kind)
    if pattern is None or not sys.platform.startswith("linux"):
        return REMEDIES[kind]
    files = sorted(glob.glob(pattern))
    if not files:
        return f"Linux shows no such device ({pattern}); {REMEDIES[kind]}"
    if not os.access(files[0], os.R_OK | os.W_OK):
        return f"{files[0]} is there and you may not use it: sudo usermod -aG render $USER"
    return f"{files[0]} is there and its driver is not; {REMEDIES[kind]}"


def _find_compiler() -> dict[str, Any]:
    try:
        find_compiler()
    except RuntimeUnavailableError as error:
        return {"available": False, "remedy": str(error).partition(": ")[2]}
    return {"available": True, "remedy": None}
