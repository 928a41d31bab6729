"""Run `bench.worker` in a process of its own, and hear what it measured."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from typing import Any

from lfm2_deploy.errors import Lfm2DeployError


def run_worker(request: dict[str, Any], tell: Callable[[str], None]) -> dict[str, Any]:
    """Measure a bundle.

    Args:
        request: as `bench.worker.run` takes it.
        tell: hears each step.

    Raises:
        Lfm2DeployError: it cannot be measured, or the process ended without an answer.
    """
    words = [sys.executable, "-m", "lfm2_deploy.bench.worker", json.dumps(request)]
    with subprocess.Popen(
        words, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, encoding="utf-8"
    ) as worker:
        assert worker.stderr is not None
        assert worker.stdout is not None
        last = ""
        for line in worker.stderr:
            last = line.strip() or last
            tell(last)
        answer = worker.stdout.read()
    try:
        result: dict[str, Any] = json.loads(answer)
    except ValueError as error:
        raise Lfm2DeployError(
            f"measuring {request['bundle']} ended with code {worker.returncode} ({last}): if it "
            "was killed, there is too little memory (`lfm2-deploy plan` tells)"
        ) from error
    if "error" in result:
        raise Lfm2DeployError(result["error"])
    return result
