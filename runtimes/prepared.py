"""A bundle's weights in the order this machine's kernels read them, kept on disk.

ONNX Runtime repacks quantized weights at every load, into memory of its own: 4.9 GB for
LFM2-8B-A1B. Prepared once, they are mapped instead: the memory is the page cache's, which
the system may take back, and which two processes share. The packed order depends on the
processor and on onnxruntime's version, so a copy is used on this machine only, and only
for the very bundle it was made of.

The raw weights stay in the copy and are read at every load: onnxruntime 1.32.0 finds a
packed weight by a hash of what packing gives, so it packs each one again and then drops
what it made (session_state.cc, PrepackConstantInitializedTensors).
"""

from __future__ import annotations

import hashlib
import json
import os
import platform
import shutil
from dataclasses import asdict
from pathlib import Path

import onnxruntime as ort
from filelock import FileLock

from lfm2_deploy.bundle import GRAPH, Bundle
from lfm2_deploy.contracts import Progress, ignore_progress
from lfm2_deploy.errors import BundleError, DiskFullError
from lfm2_deploy.machine import describe_machine, find_cache
from runtimes.ort_options import PROVIDER, make_options

_RECORD = "prepared.json"
_DATA = "model.onnx.data"
# The copy holds raw and packed weights; packed ones are up to a fifth larger (int4 in groups
# of 32: 24 bytes for 20).
_MOST_GROWTH = 2.25


def prepare(bundle: Bundle, progress: Progress = ignore_progress) -> Path:
    """Make the prepared copy of a bundle, or find the one that is there.

    Args:
        bundle: one for ONNX Runtime on the CPU.
        progress: told of each step.

    Returns:
        The copy's folder, in the user's cache.

    Raises:
        DiskFullError: there is no room for it.
        BundleError: ONNX Runtime cannot load the bundle or write the copy.
    """
    folder = _choose_folder(bundle)
    folder.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(f"{folder}.lock"):
        if find_prepared(bundle) is None:
            scratch = folder.with_name(f".{folder.name}.partial")
            for old in (scratch, folder):
                shutil.rmtree(old, ignore_errors=True)
            try:
                scratch.mkdir()
                _write(bundle, scratch, progress)
                os.replace(scratch, folder)
            except OSError as error:
                raise BundleError(
                    f"{bundle.path} cannot be prepared in {folder.parent} "
                    f"({error.strerror or error}); free some space and try again"
                ) from error
            finally:
                shutil.rmtree(scratch, ignore_errors=True)
    return folder


def find_prepared(bundle: Bundle) -> Path | None:
    """The graph of a bundle's prepared copy; None where there is none that is whole."""
    folder = _choose_folder(bundle)
    try:
        sizes = json.loads((folder / _RECORD).read_text(encoding="utf-8"))["sizes"]
        whole = all((folder / name).stat().st_size == size for name, size in sizes.items())
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return None
    return folder / GRAPH if whole and sizes else None


def remove_prepared(bundle: Bundle) -> bool:
    """Remove a bundle's prepared copy; whether there was one."""
    folder = _choose_folder(bundle)
    if not folder.is_dir():
        return False
    with FileLock(f"{folder}.lock"):
        shutil.rmtree(folder, ignore_errors=True)
    return not folder.exists()


def measure_prepared(folder: Path) -> int:
    """Bytes a copy takes on disk."""
    return sum(file.stat().st_size for file in folder.iterdir())


class _Preparer:
    """`contracts.Preparer`."""

    prepare = staticmethod(prepare)
    remove = staticmethod(remove_prepared)
    measure = staticmethod(measure_prepared)


PREPARER = _Preparer()


def _choose_folder(bundle: Bundle) -> Path:
    machine = describe_machine()
    files = bundle.manifest.files
    key = [
        *(files[GRAPH].sha256, files[bundle.manifest.weights].sha256),
        *(ort.__version__, platform.machine(), machine.cpu, machine.instructions),
    ]
    digest = hashlib.sha256(json.dumps(key).encode()).hexdigest()
    return find_cache() / "prepared" / digest[:32]


def _write(bundle: Bundle, folder: Path, progress: Progress) -> None:
    needed = int(_MOST_GROWTH * bundle.manifest.files[bundle.manifest.weights].size_bytes)
    free = shutil.disk_usage(folder).free
    if needed > free:
        raise DiskFullError(
            f"{folder.parent} has {free / 2**30:.2f} GiB free and preparing {bundle.path} needs "
            f"up to {needed / 2**30:.2f} GiB; free some space, or do without"
        )
    progress("preparing", 0, 0)
    options = make_options(None)
    options.optimized_model_filepath = os.fspath(folder / GRAPH)
    for key, value in (
        ("session.optimized_model_external_initializers_file_name", _DATA),
        ("session.optimized_model_external_initializers_min_size_in_bytes", "1024"),
        ("session.save_external_prepacked_constant_initializers", "1"),
    ):
        options.add_session_config_entry(key, value)
    # It warns that the file is for this machine, which is what it is for.
    options.log_severity_level = 4
    try:
        ort.InferenceSession(os.fspath(bundle.graph), options, providers=[PROVIDER])
    except Exception as error:
        reason = str(error).splitlines()[0]
        raise BundleError(
            f"onnxruntime {ort.__version__} cannot prepare {bundle.graph}: {reason}; "
            "export the model again with the installed versions"
        ) from error
    sizes = {name: (folder / name).stat().st_size for name in (GRAPH, _DATA)}
    record = {"bundle": str(bundle.path.resolve()), "sizes": sizes}
    record["machine"] = asdict(describe_machine())
    (folder / _RECORD).write_text(json.dumps(record) + "\n", encoding="utf-8")
