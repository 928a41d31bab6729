"""Qualcomm's HTP through onnxruntime-qnn: finding it, and sessions that run there or not at all.

On Linux x86_64 the package holds Qualcomm's emulator of the HTP instead, which computes what
the device would, on the CPU; it is used where it is asked for by name.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import onnxruntime as ort
import onnxruntime_qnn

from lfm2_deploy.device_names import explain_device
from lfm2_deploy.errors import BundleError, RuntimeUnavailableError
from runtimes.drivers import describe_cpu, describe_npu_drivers
from runtimes.ort_options import PROVIDER, make_options
from runtimes.quiet import stdout_to_stderr

NAME = "QNNExecutionProvider"
EMULATOR, NPU, CPU = "emulator", "npu", "cpu"
# Snapdragon X Elite and Plus (SC8380XP, HTP v73): what the emulator is asked to be.
DEFAULT_SOC = "60"
_REGISTERING = threading.Lock()
_REMEDY = (
    "it needs Windows on Arm or Linux on a Snapdragon with its NPU driver; on Linux x86_64 "
    "Qualcomm's emulator runs the same graphs, slowly, with --device emulator"
)


@dataclass(frozen=True, slots=True)
class QnnDevice:
    """Where a bundle's graphs run.

    Args:
        kind: "npu", "emulator", or "cpu", onnxruntime's own kernels in their stead.
        device: onnxruntime's; None for "cpu".
        soc: Qualcomm's number of the chip; None where the device tells by itself.
    """

    kind: str
    device: Any
    soc: str | None

    def describe(self) -> str:
        """For people: what runs, and where."""
        if self.kind == CPU:
            return "CPU (onnxruntime), in the place of a Qualcomm NPU"
        if self.kind == EMULATOR:
            return (
                f"Qualcomm HTP, emulated on this CPU (SoC model {self.soc}, {describe_package()})"
            )
        return f"Qualcomm HTP ({describe_package()})"

    def options(self) -> dict[str, str]:
        """The provider's options."""
        options = {
            "backend_path": onnxruntime_qnn.get_qnn_htp_path(),
            # Of no effect where all is quantized.
            "enable_htp_fp16_precision": "1",
            "htp_graph_finalization_optimization_mode": "3",
        }
        if self.soc is not None:
            options["soc_model"] = self.soc
        else:
            options["htp_performance_mode"] = "burst"
        return options


def describe_package() -> str:
    """The package and the SDK in it, such as "onnxruntime-qnn 2.7.0, QNN 2.51.0"."""
    info = onnxruntime_qnn.build_and_package_info
    return f"onnxruntime-qnn {info.__version__}, QNN {info.qnn_version}"


def describe_driver(device: QnnDevice) -> str:
    """Versions of all that computes on a device."""
    found = [f"onnxruntime {ort.__version__}"]
    if device.kind == CPU:
        return ", ".join([*found, describe_cpu()])
    drivers = describe_npu_drivers() if device.kind == NPU else ""
    return ", ".join([*found, describe_package(), *([drivers] if drivers else [])])


def find_device(asked: str, soc: str = DEFAULT_SOC) -> QnnDevice:
    """The device of that name.

    Args:
        asked: "npu", "emulator" or "cpu".
        soc: the chip to emulate.

    Raises:
        RuntimeUnavailableError: there is no such device here; says what it needs.
    """
    if asked == CPU:
        return QnnDevice(CPU, None, None)
    kinds = {
        NPU: ort.OrtHardwareDeviceType.NPU,
        "qnn": ort.OrtHardwareDeviceType.NPU,
        # The emulator's library registers itself for the CPU.
        EMULATOR: ort.OrtHardwareDeviceType.CPU,
    }
    if asked not in kinds:
        takes = (NPU, EMULATOR, CPU)
        raise RuntimeUnavailableError(explain_device(asked, "a bundle for QNN", takes))
    found = [device for device in list_devices() if device.device.type == kinds[asked]]
    if not found:
        what = "HTP emulator" if asked == EMULATOR else "Qualcomm NPU"
        raise RuntimeUnavailableError(f"{describe_package()} finds no {what} here: {_REMEDY}")
    if asked == EMULATOR:
        return QnnDevice(EMULATOR, found[0], soc)
    return QnnDevice(NPU, found[0], None)


def list_devices() -> list[Any]:
    """What onnxruntime-qnn offers here.

    Raises:
        RuntimeUnavailableError: its library does not load.
    """
    with _REGISTERING:
        if not _list_own():
            try:
                path = onnxruntime_qnn.get_library_path()
                with stdout_to_stderr():
                    ort.register_execution_provider_library(NAME, path)
            except Exception as error:
                raise RuntimeUnavailableError(
                    f"{describe_package()} does not load into onnxruntime {ort.__version__} "
                    f"({_reason(error)}): pip install --force-reinstall 'lfm2-deploy[qnn]'"
                ) from error
    return _list_own()


def _list_own() -> list[Any]:
    return [device for device in ort.get_ep_devices() if device.ep_name == NAME]


def create_session(
    path: Path, device: QnnDevice, threads: int | None, entries: Mapping[str, str] | None = None
) -> ort.InferenceSession:
    """A session of which every node runs on the device.

    Args:
        path: the graph.
        device: where it must run.
        threads: of what runs on the CPU.
        entries: further entries of the session's configuration.

    Raises:
        BundleError: the device refuses the graph, or a node of it.
    """
    options = make_options(threads)
    if device.kind == CPU:
        # As written: fused, QDQ groups would compute in 8 bits what the NPU does in 16.
        options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
        return _create(path, options, [PROVIDER])
    # The provider names what it refuses in its log, and the error does so below.
    options.log_severity_level = 4
    options.add_provider_for_devices([device.device], device.options())
    options.add_session_config_entry("session.record_ep_graph_assignment_info", "1")
    options.add_session_config_entry("session.disable_cpu_ep_fallback", "1")
    for key, value in (entries or {}).items():
        options.add_session_config_entry(key, value)
    try:
        session = _create(path, options, None)
    except BundleError as error:
        refused = list_refused(path, device)
        if not refused:
            raise
        raise _refusal(path, device, refused) from error
    refused = _list_elsewhere(session)
    if refused:
        raise _refusal(path, device, refused)
    return session


def create_host_session(path: Path, threads: int | None) -> ort.InferenceSession:
    """A session on the CPU, for graphs that belong there.

    Raises:
        BundleError: onnxruntime refuses the graph.
    """
    return _create(path, make_options(threads), [PROVIDER])


def _create(
    path: Path, options: ort.SessionOptions, providers: list[str] | None
) -> ort.InferenceSession:
    try:
        with stdout_to_stderr():  # Qualcomm's emulator says a line of its own
            return ort.InferenceSession(os.fspath(path), options, providers=providers)
    except Exception as error:
        raise BundleError(
            f"onnxruntime {ort.__version__} cannot load {path}: {_reason(error)}; export the model "
            "again with the installed versions"
        ) from error


def list_refused(path: Path, device: QnnDevice) -> list[str]:
    """Nodes of a graph that would run elsewhere, as "name (operator)"; none if it loads nowhere."""
    options = make_options(None)
    options.log_severity_level = 4
    options.add_provider_for_devices([device.device], device.options())
    options.add_session_config_entry("session.record_ep_graph_assignment_info", "1")
    try:
        with stdout_to_stderr():
            session = ort.InferenceSession(os.fspath(path), options)
    except Exception:  # the first error says more than this one
        return []
    return _list_elsewhere(session)


def _list_elsewhere(session: ort.InferenceSession) -> list[str]:
    return [
        f"{node.name} ({node.op_type})"
        for part in session.get_provider_graph_assignment_info()
        if part.ep_name != NAME
        for node in part.get_nodes()
    ]


def _refusal(path: Path, device: QnnDevice, refused: list[str]) -> BundleError:
    more = f" and {len(refused) - 1} more" if len(refused) > 1 else ""
    return BundleError(
        f"{path} does not run on {device.describe()}: it refuses {refused[0]}{more}; export the "
        "model again with --target qnn and the installed versions"
    )


def _reason(error: Exception) -> str:
    """The line of onnxruntime's message that says something."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[0] if lines else "no reason given"
