"""What Vulkan finds on Linux, where WebGPU's provider runs on it, and what is missing.

Vulkan's loader is asked through ctypes, since onnxruntime does not say which adapter WebGPU
took. Call it in a child process: drivers are loaded. Structures are those of the Vulkan 1.2
specification (VkPhysicalDeviceProperties2, VkPhysicalDeviceDriverProperties).
"""

from __future__ import annotations

import ctypes
import glob
import os
import re
import shutil
import sys
from dataclasses import asdict, dataclass
from typing import Any

_LOADER = "libvulkan.so.1"
_RENDER_NODES = "/dev/dri/renderD*"
_KINDS = ("other", "integrated", "discrete", "virtual", "cpu")
_INCOMPATIBLE_DRIVER = -9  # the loader's word for "no driver is installed"
_INCOMPLETE = 5
_VERSION_1_2 = (1 << 22) | (2 << 12)
_S_APPLICATION, _S_INSTANCE = 0, 1
_S_PROPERTIES_2, _S_DRIVER_PROPERTIES = 1000059001, 1000196000
_MOST_ADAPTERS = 16
# Lavapipe of Mesa 22.3 fails in WebGPU's provider, that of 25 works; between is not known.
_LAVAPIPE_THAT_WORKS = 25
_MESA = re.compile(r"Mesa (\d+)\.")
_SOFTWARE = ("llvmpipe", "lavapipe", "swiftshader")
# By package manager: the loader with Mesa's drivers.
_INSTALL = {
    "apt": "sudo apt install libvulkan1 mesa-vulkan-drivers",
    "dnf": "sudo dnf install vulkan-loader mesa-vulkan-drivers",
    "pacman": "sudo pacman -S vulkan-icd-loader vulkan-intel vulkan-radeon",
}


@dataclass(frozen=True, slots=True)
class Adapter:
    """A physical device as Vulkan names it.

    Args:
        name: the driver's name for it.
        kind: "integrated", "discrete", "virtual", "cpu" or "other".
        driver: the driver and its version, or "".
    """

    name: str
    kind: str
    driver: str

    @property
    def is_software(self) -> bool:
        """Whether it computes on the CPU."""
        return self.kind == "cpu" or any(word in self.name.lower() for word in _SOFTWARE)


class _Application(ctypes.Structure):
    _fields_ = [
        ("type", ctypes.c_uint32),
        ("next", ctypes.c_void_p),
        ("name", ctypes.c_char_p),
        ("version", ctypes.c_uint32),
        ("engine", ctypes.c_char_p),
        ("engine_version", ctypes.c_uint32),
        ("api", ctypes.c_uint32),
    ]


class _Instance(ctypes.Structure):
    _fields_ = [
        ("type", ctypes.c_uint32),
        ("next", ctypes.c_void_p),
        ("flags", ctypes.c_uint32),
        ("application", ctypes.POINTER(_Application)),
        ("layer_count", ctypes.c_uint32),
        ("layers", ctypes.c_void_p),
        ("extension_count", ctypes.c_uint32),
        ("extensions", ctypes.c_void_p),
    ]


class _Driver(ctypes.Structure):
    _fields_ = [
        ("type", ctypes.c_uint32),
        ("next", ctypes.c_void_p),
        ("id", ctypes.c_uint32),
        ("name", ctypes.c_char * 256),
        ("info", ctypes.c_char * 256),
        ("conformance", ctypes.c_uint32),
    ]


class _Properties(ctypes.Structure):
    # VkPhysicalDeviceProperties has 824 bytes, of which the first fields are read.
    _fields_ = [
        ("type", ctypes.c_uint32),
        ("next", ctypes.c_void_p),
        ("api", ctypes.c_uint32),
        ("driver_version", ctypes.c_uint32),
        ("vendor", ctypes.c_uint32),
        ("device", ctypes.c_uint32),
        ("kind", ctypes.c_uint32),
        ("name", ctypes.c_char * 256),
        ("rest", ctypes.c_uint64 * 96),
    ]


class LoaderMissingError(Exception):
    """There is no Vulkan loader."""


def list_adapters() -> list[Adapter]:
    """Every adapter that Vulkan lists; none where no driver is installed.

    Raises:
        LoaderMissingError: libvulkan.so.1 is not there.
        RuntimeError: Vulkan fails otherwise, with its number.
    """
    try:
        vulkan = ctypes.CDLL(_LOADER)
    except OSError as error:
        raise LoaderMissingError(str(error)) from error
    application = _Application(type=_S_APPLICATION, name=b"lfm2-deploy", api=_VERSION_1_2)
    wanted = _Instance(type=_S_INSTANCE, application=ctypes.pointer(application))
    instance = ctypes.c_void_p()
    code = vulkan.vkCreateInstance(ctypes.byref(wanted), None, ctypes.byref(instance))
    if code == _INCOMPATIBLE_DRIVER:
        return []
    _check(code, "vkCreateInstance")
    try:
        count = ctypes.c_uint32(_MOST_ADAPTERS)
        handles = (ctypes.c_void_p * _MOST_ADAPTERS)()
        code = vulkan.vkEnumeratePhysicalDevices(instance, ctypes.byref(count), handles)
        _check(code, "vkEnumeratePhysicalDevices")
        return [_describe(vulkan, handle) for handle in handles[: count.value]]
    finally:
        vulkan.vkDestroyInstance(instance, None)


def _check(code: int, call: str) -> None:
    if code not in (0, _INCOMPLETE):
        raise RuntimeError(f"Vulkan's {call} fails with {code}")


def _describe(vulkan: Any, handle: int | None) -> Adapter:
    driver = _Driver(type=_S_DRIVER_PROPERTIES)
    found = _Properties(type=_S_PROPERTIES_2, next=ctypes.addressof(driver))
    vulkan.vkGetPhysicalDeviceProperties2(ctypes.c_void_p(handle), ctypes.byref(found))
    kind = _KINDS[found.kind] if found.kind < len(_KINDS) else "other"
    name, maker = _read(found.name), _read(driver.name)
    info = _read(driver.info) if maker in name else f"{maker} {_read(driver.info)}"
    return Adapter(name, kind, info.strip())


def _read(text: bytes) -> str:
    return text.decode(errors="replace").strip()


def examine_vulkan() -> dict[str, Any]:
    """What Vulkan finds, and each thing in its way with the remedy; for Linux.

    Returns:
        `adapters`: name, kind, driver and is_software of each. `problems`: `what` and `remedy`
        of each. Both empty on other systems, where WebGPU needs no Vulkan.
    """
    if not sys.platform.startswith("linux"):
        return {"adapters": [], "problems": []}
    try:
        adapters = list_adapters()
    except LoaderMissingError:
        missing = _problem(f"there is no Vulkan loader ({_LOADER})", explain_install())
        return {"adapters": [], "problems": [missing, *find_node_problems()]}
    except RuntimeError as error:
        broken = _problem(str(error), f"install the GPU's driver again: {explain_install()}")
        return {"adapters": [], "problems": [broken, *find_node_problems()]}
    records = [{**asdict(adapter), "is_software": adapter.is_software} for adapter in adapters]
    return {"adapters": records, "problems": find_problems(adapters)}


def find_problems(adapters: list[Adapter]) -> list[dict[str, str]]:
    """What keeps WebGPU from a GPU, given what Vulkan lists."""
    if any(not adapter.is_software for adapter in adapters):
        return []  # some drivers, as NVIDIA's in a container, need no /dev/dri
    problems = find_node_problems()
    if not adapters:
        chosen = [name for name in ("VK_DRIVER_FILES", "VK_ICD_FILENAMES") if name in os.environ]
        hint = f"unset {chosen[0]}, or " if chosen else ""
        remedy = f"{hint}{explain_install()}; for NVIDIA, its own driver"
        return [_problem("Vulkan has no driver (ICD)", remedy), *problems]
    if not problems:
        remedy = f"install the GPU's driver: {explain_install()}; for NVIDIA, its own"
        problems = [_problem("Vulkan lists software adapters only", remedy)]
    return problems + [
        _problem(
            f"{adapter.name} is of {adapter.driver}: WebGPU fails with Mesa 22.3 and works with "
            f"{_LAVAPIPE_THAT_WORKS}",
            "install a newer Mesa (Debian: mesa-vulkan-drivers of backports)",
        )
        for adapter in adapters
        if _is_too_old(adapter)
    ]


def _is_too_old(adapter: Adapter) -> bool:
    version = _MESA.search(adapter.driver)
    return version is not None and int(version[1]) < _LAVAPIPE_THAT_WORKS


def find_node_problems() -> list[dict[str, str]]:
    """Whether Linux shows a GPU, and lets this user have it."""
    nodes = sorted(glob.glob(_RENDER_NODES))
    if not nodes:
        return [
            _problem(
                f"Linux shows no GPU ({_RENDER_NODES})",
                "in a container, start it with --device /dev/dri; else install the GPU's driver",
            )
        ]
    if any(os.access(node, os.R_OK | os.W_OK) for node in nodes):
        return []
    return [
        _problem(
            f"you may not use {', '.join(nodes)}",
            "sudo usermod -aG render $USER, then log in again",
        )
    ]


def explain_install() -> str:
    """The command that brings loader and drivers, of the package manager that is here."""
    here = [command for name, command in _INSTALL.items() if shutil.which(name)]
    return here[0] if here else " or ".join(_INSTALL.values())


def _problem(what: str, remedy: str) -> dict[str, str]:
    return {"what": what, "remedy": remedy}
