"""One bundle, measured in a process of its own, so that its memory is its own.

    python -m lfm2_deploy.bench.worker '{"bundle": ..., "contexts": ..., ...}'

Writes one JSON object to stdout; on stderr, a line for each step.
"""

from __future__ import annotations

import json
import os
import sys
import warnings
from pathlib import Path
from typing import Any

from lfm2_deploy.bandwidth import measure_bandwidth
from lfm2_deploy.bench.measure import Trial, measure
from lfm2_deploy.bundle import Bundle, open_bundle
from lfm2_deploy.canary.check import CanaryWarning, choose_mode, guard, has_canary
from lfm2_deploy.contracts import Runtime, RuntimeInfo
from lfm2_deploy.errors import Lfm2DeployError
from lfm2_deploy.footprint import Footprint, expand_plan, measure_footprint
from lfm2_deploy.intact import ensure_intact
from lfm2_deploy.machine import count_usable_cores, measure_memory
from lfm2_deploy.places import load_runtime


def run(request: dict[str, Any]) -> dict[str, Any]:
    """Measure what a request asks for.

    Args:
        request: `bundle`, `contexts`, `decode`, `rounds`, `threads` and `device` (or None).
            One with `canary` instead measures nothing: see `check_canary`.
    """
    if "canary" in request:
        return check_canary(request)
    bundle = open_bundle(request["bundle"])
    threads = request["threads"] or count_usable_cores() or 1
    device = request.get("device")
    dropped = _drop_from_page_cache(bundle)
    after_load: list[int | None] = []
    infos: list[RuntimeInfo] = []

    def load_once() -> Runtime:
        runtime = load_runtime(bundle, threads=request["threads"], device=device)
        after_load.append(measure_memory()[0])
        infos.append(runtime.info)
        return runtime

    trial = Trial(tuple(request["contexts"]), request["decode"], request["rounds"])
    result = measure(load_once, trial, lambda what: print(what, file=sys.stderr, flush=True))
    resident, peak = measure_memory()
    bandwidth = measure_bandwidth(threads)
    footprint = _measure_footprint(bundle)
    described = result.describe()
    for speed in described["speeds"]:
        # The middle of what was decoded is what an average token looked back on.
        middle = speed["context"] + trial.decode // 2
        count = None if footprint is None else footprint.read(middle)
        speed["bytes_per_token"] = count
        speed["bound"] = None if count is None else bandwidth / count
        speed["share_of_bound"] = None if count is None else speed["decode"] / speed["bound"]
    return {
        **described,
        "page_cache_dropped": dropped,
        "threads": threads,
        "device": infos[-1].device,
        "driver": infos[-1].driver,
        "size_bytes": bundle.size_bytes,
        "resident_loaded_bytes": after_load[0],
        "resident_bytes": resident,
        "peak_bytes": peak,
        "bandwidth_bytes_per_second": bandwidth,
    }


def _measure_footprint(bundle: Bundle) -> Footprint | None:
    """What a token reads; None of an imported graph whose weights are not all known by name."""
    manifest = bundle.manifest
    try:
        storages = expand_plan(bundle.config, manifest.quantization)
    except KeyError:
        return None
    return measure_footprint(bundle.config, storages, manifest.context_length)


def check_canary(request: dict[str, Any]) -> dict[str, Any]:
    """Whether a device computes the model: otherwise its speed says nothing.

    Checking warms what measuring wants cold, so it has a process of its own.

    Args:
        request: `bundle`, `threads`, `device` and `canary`, as `load` takes it.

    Raises:
        CanaryError: it computes something else.
    """
    bundle, mode = open_bundle(request["bundle"]), choose_mode(request["canary"])
    if mode == "off" or (mode == "auto" and not has_canary(bundle)):
        return {"remark": ""}
    ensure_intact(bundle, again=mode == "always")
    runtime = load_runtime(bundle, threads=request["threads"], device=request["device"])
    with warnings.catch_warnings():
        # Said by the one who asked.
        warnings.simplefilter("ignore", CanaryWarning)
        return {"remark": guard(bundle, runtime, mode)}


def _drop_from_page_cache(bundle: Bundle) -> bool:
    """Ask the system to forget a bundle's files, so that the first load reads the disk."""
    if not hasattr(os, "posix_fadvise"):
        return False
    for name in bundle.manifest.files:
        with Path(bundle.path / name).open("rb") as file:
            os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
    return True


def main() -> int:
    """Run the request in the command line; return the exit code."""
    try:
        print(json.dumps(run(json.loads(sys.argv[1]))))
    except Lfm2DeployError as error:
        print(json.dumps({"error": str(error)}))
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
