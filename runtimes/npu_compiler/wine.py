"""The Windows wheel's compiler on Linux, under Wine."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
import time
import zipfile
from collections.abc import Callable
from pathlib import Path

from lfm2_deploy.errors import RuntimeUnavailableError
from lfm2_deploy.machine import find_cache
from runtimes.npu_compiler.compiler import Verdict, read_log

# The version that the project was checked with; blobs are pinned to it in the manifest.
OPENVINO = "2026.4.1"
# Microsoft's C++ runtime, which OpenVINO's libraries need and Wine's own is too old for.
_RUNTIME = (
    "msvcp140", "msvcp140_1", "msvcp140_2", "msvcp140_atomic_wait", "vcruntime140",
    "vcruntime140_1",
)  # fmt: skip
_GCC = "x86_64-w64-mingw32-gcc-posix"
_TOOLS = ("wine", _GCC)
_INSTALL = "sudo apt install --no-install-recommends wine wine64 g++-mingw-w64-x86-64-posix"
_SOURCE = Path(__file__).with_name("npu_compile.c")
_PROGRAM = "npu_compile.exe"


def _home() -> Path:
    return find_cache() / f"npu-compiler-{OPENVINO}"


class WineCompiler:
    """Runs `npu_compile.exe` beside OpenVINO's Windows libraries."""

    @staticmethod
    def missing() -> str:
        """What is needed and not there; empty if nothing is."""
        tools = _missing_tools()
        if tools:
            return tools
        if not (_home() / _PROGRAM).is_file():
            return "`lfm2-deploy compile --set-up` downloads it (87 MB, OpenVINO's Windows wheel)"
        return ""

    def compile(self, graph: Path, platform: str, blob: Path) -> Verdict:
        """See `compiler.Compiler.compile`."""
        home, started = _home(), time.monotonic()
        blob.unlink(missing_ok=True)
        environment = dict(
            os.environ,
            WINEPREFIX=str(home / "wine"),
            WINEDEBUG="-all",
            WINEDLLOVERRIDES=",".join(_RUNTIME) + "=n",
        )
        words = ["wine", _PROGRAM, _to_windows(graph), platform, _to_windows(blob)]
        done = subprocess.run(
            words, cwd=home, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT
        )
        log = done.stdout.decode("utf-8", "replace")
        return read_log(log, graph, platform, blob, OPENVINO, time.monotonic() - started)


def _missing_tools() -> str:
    absent = [tool for tool in _TOOLS if not shutil.which(tool)]
    return f"it needs {' and '.join(absent)}: {_INSTALL}" if absent else ""


def _to_windows(path: Path) -> str:
    return "Z:" + str(path.resolve())


def set_up(tell: Callable[[str], None]) -> None:
    """Download what is needed and build the program, once; nothing is installed.

    Args:
        tell: hears of each step.

    Raises:
        RuntimeUnavailableError: a tool is missing, or a download failed.
    """
    tools = _missing_tools()
    if tools:
        raise RuntimeUnavailableError(f"the NPU compiler cannot be set up: {tools}")
    home = _home()
    if (home / _PROGRAM).is_file():
        return
    home.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=home.parent) as scratch:
        folder = Path(scratch)
        tell("downloading OpenVINO's Windows wheel")
        for package in (f"openvino=={OPENVINO}", "msvc-runtime"):
            _download(package, folder)
        made = folder / "made"
        made.mkdir()
        for wheel in folder.glob("*.whl"):
            _unpack(wheel, made)
        tell("building the program")
        _run([_GCC, "-O1", str(_SOURCE), "-o", str(made / _PROGRAM), f"-L{made}", "-lopenvino_c"])
        shutil.rmtree(home, ignore_errors=True)
        made.rename(home)


def _download(package: str, folder: Path) -> None:
    _run(
        [sys.executable, "-m", "pip", "download", "-q", "--no-deps", "--only-binary=:all:",
         "--platform", "win_amd64", "--python-version", "3.12", "-d", str(folder), package]
    )  # fmt: skip


def _unpack(wheel: Path, folder: Path) -> None:
    """Take the libraries out of a wheel, and what lies beside them."""
    with zipfile.ZipFile(wheel) as archive:
        for name in archive.namelist():
            wanted = name.startswith("openvino/libs/") or "/data/Scripts/" in name
            if wanted and name.endswith((".dll", ".json")):
                (folder / Path(name).name).write_bytes(archive.read(name))


def _run(words: list[str]) -> None:
    done = subprocess.run(words, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    if done.returncode:
        reason = " ".join(done.stdout.split())[-300:]
        raise RuntimeUnavailableError(
            f"the NPU compiler cannot be set up: {Path(words[0]).name} failed ({reason})"
        )
