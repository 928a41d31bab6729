"""The compiler of OpenVINO's own wheel, on Windows. Not checked: written where there was none."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from pathlib import Path

from runtimes.npu_compiler.compiler import Verdict, read_log

_PROGRAM = """
import json, sys
sys.path[:] = json.loads(sys.argv[4])
import runtimes  # which switches OpenVINO's telemetry off
import openvino as ov
core = ov.Core()
print("COMPILER", core.get_property("NPU", "NPU_COMPILER_VERSION"), flush=True)
try:
    settings = {"NPU_COMPILER_TYPE": "PLUGIN", "LOG_LEVEL": "LOG_INFO"}
    compiled = core.compile_model(core.read_model(sys.argv[1]), "NPU." + sys.argv[2], settings)
    with open(sys.argv[3], "wb") as file:
        file.write(compiled.export_model().getvalue())
    print("OK")
except RuntimeError as error:
    print("FAIL", " ".join(str(error).split()))
"""


class NativeCompiler:
    """Compiles in a process of its own, whose output is the compiler's log."""

    @staticmethod
    def missing() -> str:
        """What is needed and not there; empty if nothing is."""
        return ""

    def compile(self, graph: Path, platform: str, blob: Path) -> Verdict:
        """See `compiler.Compiler.compile`."""
        import openvino as ov

        started = time.monotonic()
        paths = json.dumps([path for path in sys.path if path])
        words = [sys.executable, "-c", _PROGRAM, str(graph), platform, str(blob), paths]
        done = subprocess.run(words, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
        version = str(ov.__version__).partition("-")[0]
        return read_log(done.stdout, graph, platform, blob, version, time.monotonic() - started)
