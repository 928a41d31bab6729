"""Prefill and decode speed of a bundle, beside onnxruntime-genai on the same folder.

    lfm2-deploy export synthetic:LFM2-350M /tmp/lfm2-350m
    python benchmarks/speed.py /tmp/lfm2-350m

Both run in this process, in turns, so that ratios hold even where clocks wander; the
best of the rounds counts. Prints a Markdown table.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnxruntime_genai as og

from lfm2_deploy.bundle import open_bundle
from lfm2_deploy.contracts import Runtime
from lfm2_deploy.registry import find_runtime

Speeds = tuple[float, float]


def measure_ours(runtime: Runtime, prompt: list[int], steps: int) -> Speeds:
    """Tokens per second of prefill and of decode."""
    session = runtime.open(1, len(prompt) + steps)
    started = time.perf_counter()
    logits = session.prefill([prompt])
    prefilled = time.perf_counter()
    for _ in range(steps):
        logits = session.decode([int(logits[0].argmax())])
    ended = time.perf_counter()
    return len(prompt) / (prefilled - started), steps / (ended - prefilled)


def measure_genai(model: og.Model, prompt: list[int], steps: int) -> Speeds:
    """Tokens per second of prefill and of decode."""
    parameters = og.GeneratorParams(model)
    total = len(prompt) + steps + 1
    parameters.set_search_options(max_length=total, min_length=total, do_sample=False)
    generator = og.Generator(model, parameters)
    started = time.perf_counter()
    generator.append_tokens(prompt)
    generator.generate_next_token()
    prefilled = time.perf_counter()
    for _ in range(steps):
        generator.generate_next_token()
    ended = time.perf_counter()
    return len(prompt) / (prefilled - started), steps / (ended - prefilled)


def best(measure: Callable[[], Speeds], other: Callable[[], Speeds], rounds: int) -> list[Speeds]:
    """The best of each, measured in turns."""
    results = [(measure(), other()) for _ in range(rounds)]
    return [(max(r[side][0] for r in results), max(r[side][1] for r in results)) for side in (0, 1)]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("bundle", type=Path)
    parser.add_argument("--prompt", type=int, default=256, help="tokens of the prompt")
    parser.add_argument("--decode", type=int, default=32, help="tokens to decode")
    parser.add_argument("--rounds", type=int, default=3)
    args = parser.parse_args()
    bundle = open_bundle(args.bundle)
    runtime = find_runtime(bundle.manifest.runtime)(bundle, threads=None)
    peer = og.Model(str(args.bundle))
    generator = np.random.default_rng(0)
    prompt = generator.integers(10, bundle.config.vocab_size - 10, args.prompt).tolist()
    ours, theirs = best(
        lambda: measure_ours(runtime, prompt, args.decode),
        lambda: measure_genai(peer, prompt, args.decode),
        args.rounds,
    )
    print("| runtime | prefill tok/s | decode tok/s |")
    print("|---|---|---|")
    for name, (prefill, decode) in (("lfm2-deploy", ours), ("onnxruntime-genai", theirs)):
        print(f"| {name} | {prefill:.0f} | {decode:.1f} |")
    print(f"| ratio | {ours[0] / theirs[0]:.2f} | {ours[1] / theirs[1]:.2f} |")


if __name__ == "__main__":
    main()
