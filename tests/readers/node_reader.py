"""transformers.js in Node, a process a call."""

from __future__ import annotations

import json
import subprocess
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lfm2_deploy.bundle import Bundle

_SCRIPT = Path(__file__).parent / "run_node.mjs"


@dataclass(frozen=True, slots=True)
class NodeReader:
    """Calls the functions of greedy.mjs.

    Args:
        package: folder whose node_modules hold transformers.js.
    """

    package: Path

    def call(self, name: str, bundle: Bundle, **words: Any) -> Any:
        """What a function of greedy.mjs gives for a bundle."""
        job = {"package": str(self.package), "call": name, "folder": str(bundle.path), **words}
        done = subprocess.run(
            ["node", str(_SCRIPT)], input=json.dumps(job),
            capture_output=True, text=True, check=False, timeout=120,
        )  # fmt: skip
        assert done.returncode == 0, done.stderr
        return json.loads(done.stdout.splitlines()[-1])
