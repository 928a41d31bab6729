"""Programs in guides run as they stand, one page's blocks after the other, on the demo model."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

import lfm2_deploy
from lfm2_deploy.demo import DEMO_MODEL

from .pages import ROOT

_BLOCK = re.compile(r"^```python\n(.*?)^```", re.MULTILINE | re.DOTALL)
# What the blocks of a page print, among other things.
PRINTED = {
    "README.md": "",
    "docs/index.md": r"\w+ \w+",
    "docs/embed.md": r"ready 100%.*\n(stopped|it was done already)\n.*cannot run on 'npu'",
    "docs/publish.md": r"README.md \d+.*the license is not known",
    "docs/store.md": r"demo-cpu-int4 \d+ as far as is known, whole",
    "docs/structured.md": r'^{"title": ".{0,40}", "year": \d+}$',
    "docs/tools.md": "",  # the demo model calls nothing by itself
}


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder where what the guides load is the demo model."""
    folder = tmp_path_factory.mktemp("guides")
    lfm2_deploy.export(str(DEMO_MODEL), folder / "LFM2-350M-cpu-int4", precision="int4")
    for name in ("LFM2-350M-npu-int4", "demo-cpu-int4"):
        (folder / name).symlink_to("LFM2-350M-cpu-int4")
    return folder


@pytest.mark.parametrize("name", PRINTED)
def test_programs_of_a_guide_run(name: str, place: Path) -> None:
    pytest.importorskip("llguidance")
    blocks = _BLOCK.findall((ROOT / name).read_text(encoding="utf-8"))
    # Not those that need the Hub, or a server.
    here = [block for block in blocks if "LiquidAI/" not in block and "openai" not in block]
    assert here
    done = subprocess.run(
        [sys.executable, "-c", "\n".join(here)],
        cwd=place,
        env={**os.environ, "LFM2_DEPLOY_STORE": str(place / "store")},
        input="\n",  # nothing is asked
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr
    assert re.search(PRINTED[name], done.stdout, re.DOTALL), done.stdout
