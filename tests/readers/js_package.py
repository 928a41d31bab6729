"""transformers.js, installed once into the cache folder as package-lock.json pins it.

Enters: nothing but npm and its registry. Leaves: a folder with `node_modules`. Knows no bundle.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import subprocess
import tempfile
from pathlib import Path

HERE = Path(__file__).parent
_FILES = ("package.json", "package-lock.json")
# Older ones were not tried; Node 20.20 was.
_LEAST_NODE = 20
# What npm says where there is no way to its registry; anything else is a fault of ours.
_OFFLINE = ("ENOTFOUND", "EAI_AGAIN", "ECONNREFUSED", "ECONNRESET", "ETIMEDOUT", "ENETUNREACH")


class NotRunError(Exception):
    """Why transformers.js cannot be had on this machine."""


def install_js_package() -> Path:
    """Where `node_modules` lies; 480 MB, installed by whoever asks first.

    Raises:
        NotRunError: there is no Node, no npm or no way to npm's registry.
    """
    _check_node()
    digest = hashlib.sha256(b"".join((HERE / name).read_bytes() for name in _FILES))
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    place = cache / "lfm2-deploy-tests" / f"transformersjs-{digest.hexdigest()[:12]}"
    if not place.is_dir():
        place.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=place.parent) as scratch:
            _install(Path(scratch))
            # Whole or absent: somebody else may install it at the same time.
            if not place.is_dir():
                (Path(scratch) / "done").rename(place)
    return place


def _check_node() -> None:
    for program in ("node", "npm"):
        if shutil.which(program) is None:
            raise NotRunError(f"there is no {program} here; on Debian apt-get install nodejs npm")
    version = _run("node", "--version").stdout.strip()
    if int(version.removeprefix("v").split(".")[0]) < _LEAST_NODE:
        raise NotRunError(f"this is Node {version}; {_LEAST_NODE} or later is needed")


def _install(scratch: Path) -> None:
    made = scratch / "done"
    made.mkdir()
    for name in _FILES:
        shutil.copy(HERE / name, made)
    # Without scripts: onnxruntime-node's fetches CUDA libraries; the CPU's are in its package.
    done = _run("npm", "ci", "--ignore-scripts", "--no-audit", "--no-fund", folder=made)
    if done.returncode and any(word in done.stderr for word in _OFFLINE):
        raise NotRunError("npm cannot reach its registry from here")
    if done.returncode:
        raise RuntimeError(f"npm ci failed: {done.stderr}")


def _run(*command: str, folder: Path = HERE) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        command, cwd=folder, capture_output=True, text=True, check=False, timeout=600
    )
