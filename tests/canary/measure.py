"""Which planted faults a canary sees, and how often it doubts what is right.

    python -m tests.canary.measure                     # faults in the demo model, for the CPU
    python -m tests.canary.measure --healthy --seeds 10

Exports into a temporary folder. Of each kind of fault the first table tells how many were caught
(doubted or refused) of how many planted; with `--all`, each one with its figures. The second lists
bundles that are right and not passed, and counts them all.
"""

from __future__ import annotations

import argparse
import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

# Canaries are run here, and not at each load.
os.environ["LFM2_DEPLOY_CANARY"] = "off"

from lfm2_deploy import export
from lfm2_deploy.bundle import Bundle
from lfm2_deploy.canary.judge import Verdict, judge
from lfm2_deploy.canary.record import read_canary
from lfm2_deploy.canary.run import run_canary
from lfm2_deploy.demo import DEMO_MODEL
from lfm2_deploy.registry import find_runtime_of

from .faults import FAULTS, Fault, conv_state_of_padding, plant
from .local_faults import list_local_faults

# Targets whose graphs run on a CPU without their device.
_HEALTHY = {
    "cpu": ("fp32", "fp16", "int8", "int4"),
    "openvino-cpu": ("fp32", "int8", "int4"),
    "npu": ("fp16", "int8", "int4"),
    "webgpu": ("fp16", "int4"),
    "directml": ("int8", "int4"),
}
_ELSEWHERE = ("npu", "webgpu", "directml")
# Of each of the demo model's mixtures.
_EXPERTS = (0, 4, 6)


def measure(bundle: Bundle) -> Verdict:
    """What a bundle's canary says of it on the CPU; nothing is remembered."""
    device = {"device": "cpu"} if bundle.manifest.target in _ELSEWHERE else {}
    canary = read_canary(bundle.path, bundle.config.vocab_size, bundle.manifest.context_length)
    runtime = find_runtime_of(bundle)(bundle, threads=1, **device)
    try:
        return judge(canary, run_canary(canary, runtime), runtime.info.arithmetic)
    finally:
        runtime.close()


def list_faults(bundle: Bundle) -> Iterator[tuple[str, str, Fault]]:
    """(kind, place, fault): of whole models, then of parts."""
    config = bundle.config
    for name, fault in FAULTS.items():
        # It takes a runtime that is kept from seeing that rows disturb each other.
        if fault is not conv_state_of_padding:
            yield name, "everywhere", fault
    kinds = config.layer_types
    convs = [number for number, kind in enumerate(kinds) if kind == "conv"]
    attentions = len(kinds) - len(convs)
    yield from list_local_faults(list(config.moe_layers), convs, attentions, list(_EXPERTS))


def count_caught(bundle: Bundle, folder: Path, tells_all: bool) -> dict[str, tuple[int, int]]:
    """Of each kind of fault, how many were caught and how many planted."""
    counts: dict[str, tuple[int, int]] = {}
    for kind, place, fault in list_faults(bundle):
        verdict = measure(plant(bundle, folder / "faulty", fault))
        shutil.rmtree(folder / "faulty")
        caught, planted = counts.get(kind, (0, 0))
        counts[kind] = caught + (verdict.outcome != "passed"), planted + 1
        if tells_all:
            print(
                f"{bundle.manifest.precision} {kind}, {place}: {verdict.outcome}, error "
                f"{verdict.error:.2g} of {verdict.limit:.2g}, KL {verdict.kld:.2g}; "
                f"{verdict.reason}",
                flush=True,
            )
    return counts


def print_faults(folder: Path, tells_all: bool) -> None:
    """The table of faults."""
    columns = {}
    for precision in ("fp32", "int8", "int4"):
        bundle = export(str(DEMO_MODEL), folder / precision, precision=precision)
        columns[precision] = count_caught(bundle, folder, tells_all)
    print(f"{'caught of planted':42}", *(f"{precision:>10}" for precision in columns))
    for kind in columns["fp32"]:
        cells = ("{} of {}".format(*counts[kind]) for counts in columns.values())
        print(f"{kind:42}", *(f"{cell:>10}" for cell in cells))


def print_healthy(folder: Path, seeds: int) -> None:
    """Bundles that are right and not passed."""
    wanted = [(str(DEMO_MODEL), t, p) for t, precisions in _HEALTHY.items() for p in precisions]
    wanted += [
        (f"synthetic:{shape}@{seed}", target, precision)
        for seed in range(1, seeds + 1)
        for shape in ("tiny-dense", "tiny-moe")
        for target in ("cpu", "openvino-cpu")
        for precision in ("int8", "int4")
    ]
    wrong = 0
    for source, target, precision in wanted:
        verdict = measure(export(source, folder / "healthy", target=target, precision=precision))
        shutil.rmtree(folder / "healthy")
        if verdict.outcome != "passed":
            wrong += 1
            print(f"{source} {target} {precision}: {verdict.outcome}, {verdict.reason}", flush=True)
    print(f"{wrong} of {len(wanted)} bundles that are right are not passed")


def main() -> None:
    """See the module."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--healthy", action="store_true", help="measure false alarms")
    parser.add_argument("--seeds", type=int, default=10, help="random models of each shape")
    parser.add_argument("--all", action="store_true", help="print each fault with its figures")
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        if given.healthy:
            print_healthy(Path(folder), given.seeds)
        else:
            print_faults(Path(folder), given.all)


if __name__ == "__main__":
    main()
