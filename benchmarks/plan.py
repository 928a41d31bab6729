"""What `lfm2-deploy plan` says of a bundle, beside what a run of it takes.

    lfm2-deploy export synthetic:LFM2-350M /tmp/lfm2-350m
    python benchmarks/plan.py /tmp/lfm2-350m

The bundle is loaded in a process of its own, reads a prompt and decodes. Prints a
Markdown table. Linux only: it asks /proc.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
from pathlib import Path

from lfm2_deploy.bundle import open_bundle
from lfm2_deploy.footprint import expand_plan, measure_footprint

PROMPT, DECODE = 1024, 32
RUN = f"""
import random, sys
from lfm2_deploy.bundle import open_bundle
from lfm2_deploy.machine import measure_memory
from lfm2_deploy.registry import find_runtime
bundle = open_bundle(sys.argv[1])
session = find_runtime("ort")(bundle).open(1, {PROMPT + DECODE})
numbers = random.Random(0)
session.prefill([[numbers.randrange(bundle.config.vocab_size) for _ in range({PROMPT})]])
for _ in range({DECODE}):
    session.decode([numbers.randrange(bundle.config.vocab_size)])
size = session.snapshot().size_bytes
print(measure_memory()[1], size)
"""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("bundles", nargs="+", type=Path)
    args = parser.parse_args()
    print("| bundle | what | planned | measured | off by |")
    print("|---|---|---|---|---|")
    for path in args.bundles:
        bundle = open_bundle(path)
        config, manifest = bundle.config, bundle.manifest
        storages = expand_plan(config, manifest.quantization)
        planned = measure_footprint(config, storages, manifest.context_length)
        words = [sys.executable, "-c", RUN, str(path)]
        # Else glibc keeps freed activations or gives them back by chance.
        environment = {**os.environ, "MALLOC_MMAP_THRESHOLD_": "131072"}
        done = subprocess.run(words, capture_output=True, check=True, text=True, env=environment)
        memory, states = map(int, done.stdout.split())
        length = PROMPT + DECODE
        for what, before, after in (
            ("weights on disk", planned.weights, manifest.files["model.onnx.data"].size_bytes),
            ("most memory", planned.resident(length), memory),
            ("states", length * planned.kv_per_token + planned.conv_state, states),
        ):
            off = f"{before / after - 1:+.1%}"
            print(
                f"| {path.name} | {what} | {before / 1e6:.1f} MB | {after / 1e6:.1f} MB | {off} |"
            )


if __name__ == "__main__":
    main()
