"""Context binaries: graphs that were compiled for one chip, made offline and found again.

QNN's compiler runs on Linux x86_64, so a bundle can be compiled where it is exported. A
compiled graph is an ONNX file of one EPContext node, with the binary in a file beside it.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

from lfm2_deploy.bundle import Bundle
from lfm2_deploy.contracts import Progress
from lfm2_deploy.errors import RuntimeUnavailableError
from lfm2_deploy.manifest import BlobRecord, GraphRecord
from runtimes.qnn_device import (
    CPU,
    EMULATOR,
    QnnDevice,
    create_session,
    describe_package,
    find_device,
)

# Qualcomm's numbers of chips in laptops, as `soc_model` takes them (QNN SDK, QnnTypes.h).
SOCS = {
    "60": "Snapdragon X Elite and X Plus (SC8380XP, HTP v73)",
    "88": "Snapdragon X2 Elite (SC8480XP, HTP v81)",
}


def make_compiler(
    platforms: Sequence[str],
) -> Callable[[Path, Sequence[GraphRecord], Progress], tuple[BlobRecord, ...]]:
    """What compiles a bundle's graphs for these chips.

    Args:
        platforms: Qualcomm's `soc_model` numbers, such as "60".

    Raises:
        RuntimeUnavailableError: one is not a number that this knows, or QNN's compiler is not
            here; before anything is exported.
    """
    for platform in platforms:
        if platform not in SOCS:
            known = ", ".join(f"{soc} for {name}" for soc, name in SOCS.items())
            raise RuntimeUnavailableError(
                f"there is no Qualcomm platform {platform!r}: expected {known}"
            )
    find_device(EMULATOR)
    return lambda folder, graphs, progress: _compile_all(folder, graphs, platforms, progress)


def _compile_all(
    folder: Path, graphs: Sequence[GraphRecord], platforms: Sequence[str], progress: Progress
) -> tuple[BlobRecord, ...]:
    """Compile every graph for every chip, into the folder.

    Raises:
        BundleError: the compiler refuses a graph.
    """
    for stale in folder.glob("*.blob*"):  # of an export that was interrupted
        stale.unlink()
    chosen = [graph for graph in graphs if graph.device == "target"]
    blobs = []
    for platform in platforms:
        device = find_device(EMULATOR, platform)
        for done, graph in enumerate(chosen):
            progress(f"compiling for SoC {platform}", done, len(chosen))
            name = f"{graph.name}.{platform}.blob.onnx"
            _compile(folder / graph.file, folder / name, device)
            blobs.append(BlobRecord(graph.name, graph.name, name, platform, describe_package(), ""))
    return tuple(blobs)


def _compile(graph: Path, out: Path, device: QnnDevice) -> None:
    entries = {
        "ep.context_enable": "1",
        "ep.context_file_path": str(out),
        # A binary of its own: one in the ONNX file may be no larger than 2 GB with it.
        "ep.context_embed_mode": "0",
    }
    create_session(graph, device, None, entries)


def find_contexts(bundle: Bundle, device: QnnDevice) -> dict[str, str]:
    """Files of the graphs that were compiled for this device and these versions, by graph.

    A chip does not tell its number, so what was compiled for several is left alone there; QNN
    itself refuses what was compiled for another.
    """
    if device.kind == CPU:
        return {}
    own = [blob for blob in bundle.manifest.blobs if blob.compiler == describe_package()]
    if device.kind == EMULATOR:
        own = [blob for blob in own if blob.platform == device.soc]
    if len({blob.platform for blob in own}) != 1:
        return {}
    return {blob.graph: blob.file for blob in own}
