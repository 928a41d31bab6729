"""ONNX Runtime's execution providers that come as libraries: found, registered, devices listed.

A library may come from a package known here, from any package with an entry point in
`lfm2_deploy.ort_providers`, or from Windows ML's catalogue. It is loaded once a process, and
only when its provider is asked for. Providers built into the installed onnxruntime are listed
beside them. What a device can run is `device_check`'s business.

Sources: the wheels onnxruntime-ep-webgpu 0.4.0, onnxruntime-ep-openvino 1.8.1, onnxruntime-qnn
2.7.0 and windowsml 2.5.96; onnxruntime 1.32.0.
"""

from __future__ import annotations

import importlib
import importlib.util
import os
import sys
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field, replace
from functools import partial
from importlib.metadata import PackageNotFoundError, version
from types import ModuleType
from typing import Any

import onnxruntime as ort

from lfm2_deploy.device_names import tell_target
from lfm2_deploy.errors import RuntimeUnavailableError
from lfm2_deploy.plugins import Plugin, find_clashes, list_plugins
from runtimes import windows_ml
from runtimes.quiet import stdout_to_stderr

# Packages that bring a library: provider -> module, and what pip calls it.
KNOWN = {
    "WebGpuExecutionProvider": ("onnxruntime_ep_webgpu", "onnxruntime-ep-webgpu"),
    "OpenVINOExecutionProvider": ("onnxruntime_ep_openvino", "onnxruntime-ep-openvino"),
    "QNNExecutionProvider": ("onnxruntime_qnn", "onnxruntime-qnn"),
}
# How people call them.
_ALIASES = {"directml": "dml"}
# These drive GPUs and NPUs; a CPU among their devices is an emulation.
_HARDWARE_ONLY = {
    *("WebGpuExecutionProvider", "DmlExecutionProvider", "QNNExecutionProvider"),
    *("CUDAExecutionProvider", "NvTensorRTRTXExecutionProvider", "VitisAIExecutionProvider"),
}
_EMULATIONS = ("llvmpipe", "lavapipe", "swiftshader", "basic render", "software")
# Microsoft's Basic Render Driver (WARP), as DirectX names it.
_WARP = (0x1414, 0x8C)
_DIRECTML = "install onnxruntime-windowsml in place of onnxruntime"
_ONLY_WINDOWS = (
    "DirectML is a part of Windows; here --device cpu runs its graphs on the CPU, and --target "
    "webgpu is for this system's GPUs"
)
# A remote service, not a device.
_NO_DEVICE = {"AzureExecutionProvider"}


@dataclass(frozen=True, slots=True)
class Library:
    """A provider's library.

    Args:
        provider: the provider's name; the library is registered under it, since some (qnn
            2.7.0) call their provider by the name they are registered with.
        package: what brings it.
        find: gives the path; whatever it raises is told.
    """

    provider: str
    package: str
    find: Callable[[], str]


@dataclass(frozen=True, slots=True)
class ProviderDevice:
    """A device that a provider lists. Listed is not running: see `device_check`.

    Args:
        provider: such as "WebGpuExecutionProvider".
        index: among this provider's devices.
        kind: "cpu", "gpu", "npu", or "unknown" where a provider that is built in names none.
        vendor: as the system tells, or "".
        vendor_id: PCI number, or 0.
        device_id: PCI number, or 0.
        description: the device's name, or "".
        is_software: an emulation on the CPU; None where that is not known.
        handle: onnxruntime's own, for `SessionOptions.add_provider_for_devices`; None where
            only the provider's name serves.
    """

    provider: str
    index: int
    kind: str
    vendor: str
    vendor_id: int
    device_id: int
    description: str
    is_software: bool | None
    handle: Any = field(default=None, repr=False, compare=False)

    @property
    def name(self) -> str:
        """What users type: "webgpu.0"."""
        return f"{shorten(self.provider)}.{self.index}"

    def without_handle(self) -> ProviderDevice:
        """The same device, to be chosen by its provider's name and options."""
        return replace(self, handle=None)

    @property
    def words(self) -> str:
        """What it can be asked for by, in lower case; an emulation's vendor is the CPU's."""
        vendor = "software" if self.is_software else self.vendor
        return f"{vendor} {self.description} {self.kind}".lower()

    def describe(self) -> str:
        """For people: "webgpu.0 (gpu, NVIDIA GeForce RTX 4070)"."""
        # An emulation's vendor is the CPU's, and would be taken for the GPU's.
        words = self.description or ("an emulation" if self.is_software else self.vendor)
        words = words or "unnamed"
        return f"{self.name} ({self.kind}{', software' if self.is_software else ''}, {words})"


# Provider -> the path that was registered, in this process.
_registered: dict[str, str] = {}


def shorten(provider: str) -> str:
    """ "WebGpuExecutionProvider" -> "webgpu"."""
    return provider.removesuffix("ExecutionProvider").lower()


def list_libraries() -> dict[str, Library]:
    """Provider -> its library, of every package that brings one. Nothing is loaded.

    A package known here comes before an entry point, and both before Windows ML's catalogue;
    of the catalogue's, those that are ready.
    """
    ready = [offer for offer in windows_ml.list_offers() if offer.ready]
    libraries = {
        offer.provider: Library(offer.provider, "windowsml", partial(str, offer.path))
        for offer in ready
    }
    plugins = list_plugins("ort provider")
    libraries |= {plugin.name: _as_library(plugin, plugins) for plugin in plugins}
    for provider, (module, package) in KNOWN.items():
        if importlib.util.find_spec(module) is not None:
            libraries[provider] = Library(provider, package, _ask_module(module))
    return libraries


def _ask_module(module: str) -> Callable[[], str]:
    return lambda: str(importlib.import_module(module).get_library_path())


def _as_library(plugin: Plugin, plugins: tuple[Plugin, ...]) -> Library:
    def find() -> str:
        clash = find_clashes(plugins).get(plugin.name)
        if clash is not None:
            raise RuntimeUnavailableError(clash)
        found: Any = importlib.import_module(plugin.module)
        for name in filter(None, plugin.attribute.split(".")):
            found = getattr(found, name)
        path = found.get_library_path() if isinstance(found, ModuleType) else found()
        return str(os.fspath(path))

    return Library(plugin.name, plugin.package, find)


def is_built_in(provider: str) -> bool:
    """Whether the installed onnxruntime has it without a library."""
    return provider not in _registered and provider in ort.get_available_providers()


def register(provider: str) -> None:
    """Load a provider's library, once a process; nothing to do for one that is built in.

    Raises:
        RuntimeUnavailableError: no package brings it, or its library does not load.
    """
    if provider in _registered or is_built_in(provider) or _is_listed(provider):
        return
    library = list_libraries().get(provider)
    if library is None:
        raise RuntimeUnavailableError(_explain_absence(provider))
    if not hasattr(ort, "register_execution_provider_library"):
        raise RuntimeUnavailableError(
            f"onnxruntime {ort.__version__} takes no provider libraries, and {provider} of package "
            f"{library.package} is one: pip install 'onnxruntime>=1.32'"
        )
    # It warns of what a user has asked for, such as a software adapter.
    ort.set_default_logger_severity(3)
    try:
        path = library.find()
        with stdout_to_stderr():
            ort.register_execution_provider_library(provider, path)
    except Exception as error:
        raise RuntimeUnavailableError(
            f"{provider} of package {library.package} does not load with onnxruntime "
            f"{ort.__version__}: {' '.join(str(error).split()) or type(error).__name__}; "
            f"pip install --upgrade {library.package}"
        ) from error
    _registered[provider] = path


def describe_library(provider: str) -> str:
    """The package that brought a provider, and its version; "" where it is built in."""
    if provider not in _registered:
        return ""
    library = list_libraries().get(provider)
    if library is None:
        return ""
    try:
        return f"{library.package} {version(library.package)}"
    except PackageNotFoundError:  # Windows ML's, whose folder names the version
        return f"{library.package} {_registered[provider]}"


def _is_listed(provider: str) -> bool:
    """Whether another part of this process loaded its library: twice would crash it."""
    return any(device.ep_name == provider for device in _list_handles())


def _explain_absence(provider: str) -> str:
    text = f"onnxruntime {ort.__version__} has no {provider}, and no package here brings it"
    if provider in KNOWN:
        return f"{text}: pip install {KNOWN[provider][1]}"
    if provider == "DmlExecutionProvider":
        return f"{text}: {_DIRECTML if sys.platform == 'win32' else _ONLY_WINDOWS}"
    offered = [offer.provider for offer in windows_ml.list_offers()]
    if provider in offered:
        return f"{text}; Windows ML offers it, and downloads it when a device of it is asked for"
    return text


def list_devices(provider: str | None = None) -> list[ProviderDevice]:
    """The devices of a provider, or of all; what does not load is in `list_failures`.

    Args:
        provider: only that one's library is loaded; None loads all.

    Raises:
        RuntimeUnavailableError: the provider that was asked for is not here, or does not load.
    """
    if provider is not None:
        register(provider)
    else:
        list_failures()
    return [device for device in list_loaded() if provider in (None, device.provider)]


def list_loaded() -> list[ProviderDevice]:
    """The devices of providers that are built in, or whose library was registered."""
    devices = _list_listed()
    names = [name for name in ort.get_available_providers() if name not in _NO_DEVICE]
    listed = {device.provider for device in devices}
    # Without a device of their own: built in, and found only when a session is made.
    return devices + [_describe_unlisted(n) for n in names if n not in {*listed, *_registered}]


def list_failures(providers: Iterable[str] | None = None) -> dict[str, str]:
    """Provider -> why its library does not load, after trying these, or all that are here."""
    failures = {}
    for provider in list_libraries() if providers is None else providers:
        try:
            register(provider)
        except RuntimeUnavailableError as error:
            failures[provider] = str(error)
    return failures


def _list_handles() -> list[Any]:
    # onnxruntime before 1.23 lists none.
    return list(ort.get_ep_devices()) if hasattr(ort, "get_ep_devices") else []


def _list_listed() -> list[ProviderDevice]:
    counts: dict[str, int] = {}
    devices = []
    for handle in _list_handles():
        index = counts[handle.ep_name] = counts.get(handle.ep_name, -1) + 1
        devices.append(_describe(handle, index))
    return devices


def _describe(handle: Any, index: int) -> ProviderDevice:
    hardware = handle.device
    kind = str(hardware.type).rpartition(".")[2].lower()
    metadata = {str(key).lower(): str(value) for key, value in dict(hardware.metadata).items()}
    description = metadata.get("description", "").strip()
    provider, vendor = str(handle.ep_name), str(hardware.vendor or "")
    numbers = int(hardware.vendor_id), int(hardware.device_id)
    software = (
        (kind == "cpu" and provider in _HARDWARE_ONLY)
        or any(word in description.lower() for word in _EMULATIONS)
        or numbers == _WARP
    )
    return ProviderDevice(provider, index, kind, vendor, *numbers, description, software, handle)


def _describe_unlisted(provider: str) -> ProviderDevice:
    return ProviderDevice(provider, 0, "unknown", "", 0, 0, "chosen by the provider itself", None)


def find_device(provider: str, asked: str | None) -> ProviderDevice:
    """The device that a user means.

    Args:
        provider: such as "WebGpuExecutionProvider".
        asked: an index ("1", "webgpu.1"), the provider ("webgpu"), or part of a device's name
            or vendor ("nvidia"); None for the first that is no emulation, if there is one.

    Raises:
        RuntimeUnavailableError: there is no such device, or several; lists those there are.
    """
    if not is_built_in(provider) and provider not in {*_registered, *list_libraries()}:
        windows_ml.ensure_ready(provider)
    devices = list_devices(provider)
    short = shorten(provider)
    if not devices:
        raise RuntimeUnavailableError(
            f"{provider} finds no device here; `lfm2-deploy doctor` says what is there"
        )
    word = (asked or "").lower()
    head, _, number = word.rpartition(".")
    if _ALIASES.get(word, word) in ("", short):
        return next((device for device in devices if not device.is_software), devices[0])
    if number.isdigit() and _ALIASES.get(head, head) in ("", short):
        fitting = [device for device in devices if device.index == int(number)]
    else:
        fitting = [device for device in devices if word in device.words]
    if len(fitting) != 1:
        several = "several devices are" if fitting else "there is no device"
        raise RuntimeUnavailableError(
            f"{several} {asked!r} for {provider}: expected one of "
            f"{', '.join(device.describe() for device in devices)}{tell_target(word)}"
        )
    return fitting[0]
