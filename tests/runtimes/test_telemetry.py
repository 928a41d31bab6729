"""Nothing is gathered for anybody."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from importlib.metadata import distributions
from pathlib import Path

import pytest

from lfm2_deploy.bundle import Bundle

LOAD = """
import socket, sys, time
asked = []
def ask(host, *rest, **options):
    asked.append(str(host))
    raise OSError("nobody is asked")
socket.getaddrinfo = ask
from lfm2_deploy.bundle import open_bundle
from lfm2_deploy.registry import find_runtime_of
bundle = open_bundle(sys.argv[1])
find_runtime_of(bundle)(bundle).open(1, 8).prefill([[1]])
for _ in range(20):  # OpenVINO sends from a thread
    time.sleep(0 if asked else 0.1)
print("asked", *asked)
"""
SWITCHES = ("ORT_DISABLE_TELEMETRY", "LFM2_DEPLOY_OPENVINO_TELEMETRY", "CI", "TF_BUILD")


def load(bundle: Bundle, home: Path) -> list[str]:
    """Load in a fresh process whose user has an empty home; the hosts that it asked for."""
    kept = {k: v for k, v in os.environ.items() if k not in (*SWITCHES, "JENKINS_URL")}
    homes = {"HOME": str(home), "LOCALAPPDATA": str(home), "XDG_CACHE_HOME": str(home / "cache")}
    done = subprocess.run(
        [sys.executable, "-c", LOAD, bundle.path],
        env={**kept, **homes},
        check=True,
        timeout=120,
        stdout=subprocess.PIPE,
        text=True,
    )
    return done.stdout.split("asked", 1)[1].split()


def test_loading_a_bundle_leaves_no_telemetry_in_the_cache(
    bundle_of: Callable[..., Bundle], tmp_path: Path
) -> None:
    assert load(bundle_of("dense", "int4"), tmp_path) == []
    assert not list(tmp_path.rglob("*onnxruntime*"))


def test_loading_an_openvino_bundle_asks_no_host_and_leaves_no_file_at_home(
    bundle_of: Callable[..., Bundle], tmp_path: Path
) -> None:
    assert load(bundle_of("dense", "fp32", "openvino-cpu"), tmp_path) == []
    files = [file for file in tmp_path.rglob("*") if file.is_file()]
    assert [file for file in files if tmp_path / "cache" / "lfm2-deploy" not in file.parents] == []


@pytest.mark.parametrize(("wanted", "found"), [("0", False), ("1", True)])
def test_openvino_telemetry_is_hidden_unless_it_is_wanted(wanted: str, found: bool) -> None:
    if not any(found.name == "openvino-telemetry" for found in distributions()):
        pytest.skip("openvino-telemetry is not installed, so OpenVINO sends nothing anyway")
    # Importing it alone sends nothing.
    script = (
        "from lfm2_deploy.telemetry import switch_off_openvino; switch_off_openvino()\n"
        "try: import openvino_telemetry\n"
        "except ImportError: print('hidden')\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", script],
        env={**os.environ, "LFM2_DEPLOY_OPENVINO_TELEMETRY": wanted},
        check=True,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert done.stdout == ("" if found else "hidden\n")
