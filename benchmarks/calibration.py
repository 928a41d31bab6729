"""What rounding one layer by `--quantize gptq` takes: processor time, wall time and memory.

    python benchmarks/calibration.py synthetic:LFM2-8B-A1B:4 synthetic:LFM2-24B-A2B:0

MODEL:LAYER each; layers before it are not run: hidden states are random, and the rounded model's
are off by a twentieth. Tokens are as many as an export takes of that width. Each runs in a
process of its own, on one thread unless `--threads` says otherwise; memory is the most that the
process held, Python and torch included. Prints a Markdown table.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path


def measure(model: str, number: int, tokens: int | None, threads: int) -> None:
    """Round a layer in this process, and print what it took as JSON."""
    import torch

    from exporters.quantize.layerwise import Job, LayerRounder
    from exporters.quantize.methods import find_method
    from exporters.quantize.store import Store
    from exporters.quantize.twin import Twin
    from lfm2_deploy.calibration_text import ROW, count_rows
    from lfm2_deploy.checkpoint import open_checkpoint
    from lfm2_deploy.contracts import ignore_progress
    from lfm2_deploy.machine import measure_memory
    from lfm2_deploy.model.streaming import StreamedDecoder
    from lfm2_deploy.registry import find_target
    from lfm2_deploy.weights import list_weights

    torch.set_num_threads(threads)
    torch.manual_seed(0)
    checkpoint = open_checkpoint(model)
    config = checkpoint.config
    count = count_rows(config) if tokens is None else -(-tokens // ROW)
    plan = find_target("cpu").plan(list_weights(config), "int4")
    rows = torch.randint(config.vocab_size, (count, ROW)).tolist()
    exact = torch.randn(count, ROW, config.hidden_size)
    rounded = exact + 0.05 * torch.randn_like(exact)
    with tempfile.TemporaryDirectory() as folder:
        twin = Twin(StreamedDecoder(checkpoint), number, exact, rounded)
        job = Job(checkpoint, plan, find_method("gptq"), rows, ignore_progress)
        # The first layer's place: those before it are not there.
        writer = Store(Path(folder) / "rounded", "").write_layer(0)
        started, busy = time.perf_counter(), time.process_time()
        LayerRounder(job, twin, writer, None).round()
        took = time.perf_counter() - started, time.process_time() - busy
    print(json.dumps([count * ROW, *took, measure_memory()[1]]))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("layers", nargs="+", metavar="MODEL:LAYER")
    parser.add_argument("--tokens", type=int, help="instead of what an export takes")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--here", action="store_true", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.here:
        model, number = args.layers[0].rsplit(":", 1)
        measure(model, int(number), args.tokens, args.threads)
        return
    print("| layer | tokens | processor time, s | wall time, s | most memory, GiB |")
    print("|---|---|---|---|---|")
    for layer in args.layers:
        words = [sys.executable, __file__, layer, "--here", f"--threads={args.threads}"]
        words += [] if args.tokens is None else [f"--tokens={args.tokens}"]
        done = subprocess.run(words, check=True, stdout=subprocess.PIPE, text=True)
        tokens, wall, busy, memory = json.loads(done.stdout)
        print(
            f"| {layer} | {tokens} | {busy:.0f} | {wall:.0f} | {memory / 2**30:.2f} |", flush=True
        )


if __name__ == "__main__":
    main()
