"""How much of a quantized bundle's error is rounding the weights, and how much the kernels.

    lfm2-deploy export synthetic:LFM2-350M /tmp/lfm2-350m
    python benchmarks/rounding.py /tmp/lfm2-350m synthetic:LFM2-350M

Compares the bundle with torch on the exact weights and on the same weights rounded as
the bundle holds them. Prints a Markdown table. Needs memory for one float32 model.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np

from exporters.quantize.stored import StoredCheckpoint
from lfm2_deploy.bundle import open_bundle
from lfm2_deploy.checkpoint import open_checkpoint
from lfm2_deploy.compare.compare import compare_runtimes
from lfm2_deploy.registry import find_runtime, find_target
from lfm2_deploy.weights import list_weights


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("bundle", type=Path)
    parser.add_argument("model", help="the checkpoint it was made from")
    parser.add_argument("--tokens", type=int, default=128)
    args = parser.parse_args()
    bundle, checkpoint = open_bundle(args.bundle), open_checkpoint(args.model)
    tested = find_runtime(bundle.manifest.runtime)(bundle, threads=None)
    ids = np.random.default_rng(0).integers(10, bundle.config.vocab_size - 10, args.tokens)
    target, precision = find_target(bundle.manifest.target), bundle.manifest.precision
    plan = target.plan(list_weights(checkpoint.config), precision)
    rounded = StoredCheckpoint(checkpoint, plan, target.rounding(precision))
    print("| bundle against torch on | KL divergence, nats |\n|---|---|")
    for name, weights in (("exact weights", checkpoint), ("rounded weights", rounded)):
        reference = find_runtime("reference")(weights)
        result = compare_runtimes(reference, tested, [ids.tolist()], greedy_tokens=0)
        print(f"| {name} | {result.kld:.4f} ± {result.kld_error:.1g} |", flush=True)


if __name__ == "__main__":
    main()
