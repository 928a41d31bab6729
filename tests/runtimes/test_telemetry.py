"""Nothing is gathered for anybody."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

from lfm2_deploy.bundle import Bundle

LOAD = """
import sys
from lfm2_deploy.bundle import open_bundle
from lfm2_deploy.registry import find_runtime
find_runtime("ort")(open_bundle(sys.argv[1])).open(1, 8).prefill([[1]])
"""


def test_loading_a_bundle_leaves_no_telemetry_in_the_cache(
    bundle_of: Callable[..., Bundle], tmp_path: Path
) -> None:
    chosen = {k: v for k, v in os.environ.items() if k != "ORT_DISABLE_TELEMETRY"}
    subprocess.run(
        [sys.executable, "-c", LOAD, bundle_of("dense", "int4").path],
        env={**chosen, "XDG_CACHE_HOME": str(tmp_path)},
        check=True,
        timeout=120,
    )
    assert not list(tmp_path.rglob("*onnxruntime*"))
