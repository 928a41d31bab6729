"""What each way to compute a mixture of experts costs, counted in bytes and operations.

    python benchmarks/experts.py LFM2-8B-A1B LFM2-24B-A2B --tokens 1,16,256,512

No clock is read: DirectML runs on Windows alone, so ways are compared by what they move and
multiply in one layer, and by an estimate from two figures of a GPU that you give. The defaults
are of the order of a laptop's integrated GPU, and are assumptions.

gathered    each token's K experts are copied and multiplied, one token at a time
dense       all E experts are multiplied with all tokens
routed      the host reads which tokens chose which expert, and each expert gets its own;
            slices of the stacked weights are copied, rows are padded to the busiest expert
"""

from __future__ import annotations

import argparse
from dataclasses import dataclass

import numpy as np

from lfm2_deploy.checkpoint import open_checkpoint
from lfm2_deploy.config import Lfm2Config

# Bytes a weight: 4 bits, and a float16 scale for each 128.
_BYTES = 0.5 + 2 / 128


@dataclass(frozen=True)
class Cost:
    """Of one layer: bytes moved, operations, operators launched, waits for the GPU."""

    moved: float
    operations: float
    launched: int
    waits: int = 0


def count_gathered(config: Lfm2Config, tokens: int) -> Cost:
    """Read to copy, write the copy, read it."""
    chosen = config.moe.num_experts_per_tok * _count_weights(config)
    return Cost(3 * tokens * chosen * _BYTES, 2 * tokens * chosen, 20 * tokens)


def count_dense(config: Lfm2Config, tokens: int) -> Cost:
    """The second matrix, a third of all, is turned first: read, written, read."""
    weights = config.moe.num_experts * _count_weights(config)
    return Cost((1 + 2 / 3) * weights * _BYTES, 2 * tokens * weights, 15)


def count_routed(config: Lfm2Config, tokens: int) -> Cost:
    """Tokens choose at random, which is the best case: real routers have favourites."""
    moe, weights = config.moe, _count_weights(config)
    rng = np.random.default_rng(0)
    chosen = np.argsort(rng.random((tokens, moe.num_experts)))[:, : moe.num_experts_per_tok]
    busiest = int(np.bincount(chosen.ravel(), minlength=moe.num_experts).max())
    rows = moe.num_experts * busiest
    return Cost(3 * moe.num_experts * weights * _BYTES, 2 * rows * weights,
                12 * moe.num_experts, waits=1)  # fmt: skip


def _count_weights(config: Lfm2Config) -> int:
    return 3 * config.hidden_size * config.moe.moe_intermediate_size


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("models", nargs="*", default=["LFM2-8B-A1B", "LFM2-24B-A2B"])
    parser.add_argument("--tokens", default="1,4,16,256,512")
    parser.add_argument("--bandwidth", type=float, default=100.0, help="GB/s")
    parser.add_argument("--rate", type=float, default=5.0, help="TFLOPS in float16")
    parser.add_argument("--launch", type=float, default=10.0, help="microseconds an operator")
    parser.add_argument("--wait", type=float, default=300.0, help="microseconds a wait")
    given = parser.parse_args()
    print(f"assumed: {given.bandwidth:g} GB/s, {given.rate:g} TFLOPS, {given.launch:g} us an "
          f"operator, {given.wait:g} us a wait\n")  # fmt: skip
    print(f"{'model':14}{'tokens':>7}  {'way':10}{'MB a layer':>12}{'GFLOP':>9}{'operators':>11}"
          f"{'waits':>7}{'ms, all layers':>16}")  # fmt: skip
    for model in given.models:
        config = open_checkpoint(f"synthetic:{model}").config
        layers = len(config.moe_layers)
        for tokens in map(int, given.tokens.split(",")):
            for way, count in WAYS.items():
                cost = count(config, tokens)
                seconds = max(cost.moved / given.bandwidth / 1e9,
                              cost.operations / given.rate / 1e12)  # fmt: skip
                seconds += cost.launched * given.launch / 1e6 + cost.waits * given.wait / 1e6
                print(f"{model:14}{tokens:7}  {way:10}{cost.moved / 1e6:12.1f}"
                      f"{cost.operations / 1e9:9.2f}{cost.launched:11}{cost.waits:7}"
                      f"{seconds * layers * 1e3:16.1f}")  # fmt: skip


WAYS = {"gathered": count_gathered, "dense": count_dense, "routed": count_routed}

if __name__ == "__main__":
    main()
