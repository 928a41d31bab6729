"""What each way to compute a mixture of experts costs, counted in bytes and operations.

    python benchmarks/experts.py LFM2-8B-A1B LFM2-24B-A2B --tokens 1,16,256,512

No clock is read: DirectML runs on Windows alone, so ways are compared by what they move and
multiply in one layer, and by an estimate from a few figures of a GPU that you give. The defaults
are of the order of a laptop's integrated GPU, and are assumptions. Tokens choose at random, which
suits the last way best: real routers have favourites, and then more pieces are partly empty.

gathered    each token's K experts are copied and multiplied, one token at a time
dense       all E experts are multiplied with all tokens
routed      as built: the host reads which tokens chose which expert, each expert gets its own in
            pieces of C rows, several in one call, and another graph adds up their answers.
            `--rows 16,64` counts other C than the runtime chooses
"""

from __future__ import annotations

import argparse
import functools
from dataclasses import dataclass

import numpy as np

from lfm2_deploy.checkpoint import open_checkpoint
from lfm2_deploy.config import Lfm2Config
from lfm2_deploy.gpu_graphs import PIECES, SUMMED
from runtimes.gpu_routed import choose_size

# Bytes a weight: 4 bits, and a float16 scale for each 128.
_BYTES = 0.5 + 2 / 128
_HALF, _FLOAT = 2, 4


@dataclass(frozen=True)
class Cost:
    """Of one layer: bytes moved, operations, operators launched, calls of graphs beside those of
    the layer itself, waits for the GPU."""

    moved: float
    operations: float
    launched: int
    calls: int = 0
    waits: int = 0


def count_gathered(config: Lfm2Config, tokens: int) -> Cost:
    """Read to copy, write the copy, read it."""
    chosen = config.moe.num_experts_per_tok * _count_weights(config)
    return Cost(3 * tokens * chosen * _BYTES, 2 * tokens * chosen, 20 * tokens)


def count_dense(config: Lfm2Config, tokens: int) -> Cost:
    """The second matrix, a third of all, is turned first: read, written, read."""
    weights = config.moe.num_experts * _count_weights(config)
    rows = tokens * config.moe.num_experts
    moved = (1 + 2 / 3) * weights * _BYTES + rows * _count_inner_bytes(config)
    return Cost(moved, 2 * tokens * weights, 15)


def count_routed(config: Lfm2Config, tokens: int, size: int = 0) -> Cost:
    """Calls with PIECES pieces, and one sum for SUMMED of them."""
    moe, weights, hidden = config.moe, _count_weights(config), config.hidden_size
    size = size or choose_size(tokens, moe)
    rng = np.random.default_rng(0)
    chosen = np.argsort(rng.random((tokens, moe.num_experts)))[:, : moe.num_experts_per_tok]
    per_expert = np.bincount(chosen.ravel(), minlength=moe.num_experts)
    calls = -(-int((-(-per_expert // size)).sum()) // PIECES)
    sums, pieces = -(-calls // SUMMED), calls * PIECES
    # A row is gathered, answered, and its answer laid beside the others.
    row = _count_inner_bytes(config) + 3 * hidden * _HALF
    moved = 3 * pieces * weights * _BYTES + pieces * size * row
    moved += sums * SUMMED * PIECES * size * 2 * hidden * _HALF
    # Answers are gathered for each token, made float32, and added.
    moved += sums * chosen.size * hidden * (2 * _HALF + _HALF + 2 * _FLOAT)
    launched = calls * (5 + 11 * PIECES) + 8 * sums
    return Cost(moved, 2 * pieces * size * weights, launched, calls + sums + 1, waits=1)


def _count_inner_bytes(config: Lfm2Config) -> int:
    """Of one token in one expert: gate and up written and read, their product too."""
    return 6 * config.moe.moe_intermediate_size * _HALF


def _count_weights(config: Lfm2Config) -> int:
    return 3 * config.hidden_size * config.moe.moe_intermediate_size


def estimate(cost: Cost, given: argparse.Namespace) -> float:
    """Seconds: the slower of moving and multiplying, and the host's part."""
    busy = max(cost.moved / given.bandwidth / 1e9, cost.operations / given.rate / 1e12)
    host = cost.launched * given.launch + cost.calls * given.call + cost.waits * given.wait
    return float(busy + host / 1e6)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("models", nargs="*", default=["LFM2-8B-A1B", "LFM2-24B-A2B"])
    parser.add_argument("--tokens", default="1,4,16,64,128,256,512,2048")
    parser.add_argument("--rows", default="", help="C of routed pieces, besides the runtime's own")
    parser.add_argument("--bandwidth", type=float, default=100.0, help="GB/s")
    parser.add_argument("--rate", type=float, default=5.0, help="TFLOPS in float16")
    parser.add_argument("--launch", type=float, default=10.0, help="microseconds an operator")
    parser.add_argument("--call", type=float, default=100.0, help="microseconds a graph's call")
    parser.add_argument("--wait", type=float, default=300.0, help="microseconds a wait")
    given = parser.parse_args()
    print(f"assumed: {given.bandwidth:g} GB/s, {given.rate:g} TFLOPS, {given.launch:g} us an "
          f"operator, {given.call:g} us a call, {given.wait:g} us a wait\n")  # fmt: skip
    print(f"{'model':14}{'tokens':>7}  {'way':12}{'MB a layer':>12}{'GFLOP':>9}{'operators':>11}"
          f"{'calls':>7}{'waits':>7}{'ms, all layers':>16}")  # fmt: skip
    ways = dict(WAYS)
    for size in map(int, filter(None, given.rows.split(","))):
        ways[f"routed {size}"] = functools.partial(count_routed, size=size)
    for model in given.models:
        config = open_checkpoint(f"synthetic:{model}").config
        for tokens in map(int, given.tokens.split(",")):
            for way, count in ways.items():
                cost = count(config, tokens)
                seconds = estimate(cost, given) * len(config.moe_layers)
                print(f"{model:14}{tokens:7}  {way:12}{cost.moved / 1e6:12.1f}"
                      f"{cost.operations / 1e9:9.2f}{cost.launched:11}{cost.calls:7}"
                      f"{cost.waits:7}{seconds * 1e3:16.1f}")  # fmt: skip


WAYS = {"gathered": count_gathered, "dense": count_dense, "routed": count_routed}

if __name__ == "__main__":
    main()
