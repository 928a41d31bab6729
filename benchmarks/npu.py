"""What Intel's NPU compiler expects of a mixture of experts too large to compile whole.

    lfm2-deploy compile --set-up
    python benchmarks/npu.py synthetic:LFM2-24B-A2B --layers 7 --platform 4000

Exports the first layers of a model (all kinds of them must be among these), compiles each
kind of graph once, and adds up the whole model: segments, experts of K chosen for a token and
of all for a prompt's chunk, and a time for each call, which is an ASSUMPTION (`--dispatch-us`)
that nothing here can check. Then runs a layer's experts on this machine's CPU, as
`--experts cpu` does, to weigh the alternative. Estimates are the compiler's, never a
measurement. A dense model needs none of this: `lfm2-deploy compile BUNDLE`.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
import time
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from exporters.options import ExportOptions
from exporters.pipeline import export_checkpoint
from exporters.targets.npu import NPU
from lfm2_deploy.bundle import Bundle
from lfm2_deploy.checkpoint import open_checkpoint
from lfm2_deploy.checkpoint.synthetic import SyntheticCheckpoint
from lfm2_deploy.config import Lfm2Config, parse_config
from lfm2_deploy.static_graphs import DECODE, EXPERT_ROWS, PREFILL
from lfm2_deploy.weights import list_weights
from runtimes.npu_compiler.bundles import Compiled, compile_graphs

_KEYS = ("layer_types", "full_attn_idxs")


def take_first_layers(source: str, layers: int) -> SyntheticCheckpoint:
    """A synthetic model cut after some layers."""
    whole = open_checkpoint(source)
    assert isinstance(whole, SyntheticCheckpoint), "a synthetic: model is wanted"
    raw = {k: v for k, v in whole.raw_config.items() if k not in _KEYS}
    kinds = list(whole.config.layer_types[:layers])
    raw |= {"num_hidden_layers": layers, "layer_types": kinds}
    config = parse_config(raw)
    specs = {spec.name: spec for spec in list_weights(config)}
    return replace(whole, config=config, raw_config=raw, specs=specs)


def tell(what: str, done: int, total: int) -> None:
    """Progress, on stderr."""
    if not total or done == total:
        print(what, file=sys.stderr, flush=True)


def name_kind(config: Lfm2Config, start: str) -> str:
    """Which kind of segment a graph is, by the input it begins with."""
    if start == "inputs_embeds":
        return "first"
    layer = int(start.split(".")[1]) + 1
    if layer == config.num_hidden_layers:
        return "last"
    return "conv" if config.layer_types[layer] == "conv" else "attention"


def count_kinds(config: Lfm2Config) -> dict[str, int]:
    """How many segments of each kind a whole model has."""
    assert config.moe is not None
    later = config.layer_types[config.moe.num_dense_layers + 1 :]
    convs = sum(kind == "conv" for kind in later)
    return {"first": 1, "conv": convs, "attention": len(later) - convs, "last": 1}


def add_up(
    whole: Lfm2Config, excerpt: Lfm2Config, done: list[Compiled], dispatch_us: float, chunk: int
) -> dict[str, Any]:
    """The whole model's estimate, in microseconds, and its blobs, in bytes."""
    assert whole.moe is not None
    moe_layers = whole.num_hidden_layers - whole.moe.num_dense_layers
    experts, chosen = whole.moe.num_experts, whole.moe.num_experts_per_tok
    expert = next(c.verdict for c in done if c.graph.startswith("experts"))
    assert expert is not None
    kinds, result = count_kinds(whole), {}
    # A chunk's tokens spread over the experts; each call takes up to EXPERT_ROWS of them.
    calls = {DECODE: chosen, PREFILL: max(experts, -(-chunk * chosen // EXPERT_ROWS))}
    for graph in (DECODE, PREFILL):
        own = {c.start: c.verdict for c in done if c.graph == graph}
        by_kind = {name_kind(excerpt, start): verdict for start, verdict in own.items()}
        segments = sum(count * by_kind[kind].estimated_us for kind, count in kinds.items())
        runs = calls[graph] * moe_layers
        dispatches = sum(kinds.values()) + runs
        result[graph] = {
            "segments_us": segments,
            "experts_us": runs * expert.estimated_us,
            "calls": dispatches,
            "dispatch_us": dispatches * dispatch_us,
            "segment_us": {kind: v.estimated_us for kind, v in by_kind.items()},
            "segment_blobs": sum(n * by_kind[kind].blob_bytes for kind, n in kinds.items()),
        }
    result["expert"] = {
        "estimated_us": expert.estimated_us,
        "blob_bytes": expert.blob_bytes,
        "compile_s": expert.seconds,
        "count": experts * moe_layers,
    }
    return result


def measure_cpu_experts(bundle: Bundle, layer: int, tokens: int) -> float:
    """Seconds of one layer's experts, all in one graph, on this CPU."""
    import openvino as ov

    path = bundle.find_graph(f"experts.{layer}")
    settings = {"PERFORMANCE_HINT": "LATENCY", "INFERENCE_PRECISION_HINT": "f32"}
    request = ov.Core().compile_model(ov.Core().read_model(path), "CPU", settings)
    infer = request.create_infer_request()
    times = []
    for seed in range(12):  # other tokens each time, so other experts
        x = np.random.default_rng(seed).normal(size=(1, tokens, bundle.config.hidden_size))
        infer.set_input_tensor(ov.Tensor(x.astype(np.float16)))
        started = time.perf_counter()
        infer.start_async()
        infer.wait()
        times.append(time.perf_counter() - started)
    return float(np.median(times[2:]))


def print_table(result: Mapping[str, Any]) -> None:
    """What was added up, as Markdown."""
    print("| | decode, 1 token | prefill, one chunk |\n|---|---|---|")
    parts = ("segments_us", "experts_us", "dispatch_us")
    for part in parts:
        cells = [f"{result[g][part] / 1000:.1f} ms" for g in (DECODE, PREFILL)]
        print(f"| {part.removesuffix('_us')} | {cells[0]} | {cells[1]} |")
    sums = [sum(result[g][p] for p in parts) / 1000 for g in (DECODE, PREFILL)]
    print(f"| sum | {sums[0]:.1f} ms | {sums[1]:.1f} ms |")
    expert, blobs = result["expert"], sum(result[g]["segment_blobs"] for g in (DECODE, PREFILL))
    print(
        f"\n{expert['count']} experts of {expert['blob_bytes'] / 1e6:.1f} MB are "
        f"{expert['count'] * expert['blob_bytes'] / 1e9:.1f} GB of blobs, beside "
        f"{blobs / 1e9:.2f} GB of segments; compiling them one after another takes "
        f"{expert['count'] * expert['compile_s'] / 3600:.1f} hours here."
    )
    for tokens, seconds in result["cpu_experts_s"].items():
        print(f"A layer's experts on this CPU, {tokens} tokens: {seconds * 1000:.2f} ms.")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("source", help="a synthetic: mixture of experts")
    parser.add_argument("--layers", type=int, default=7)
    parser.add_argument("--platform", default="4000")
    parser.add_argument("--precision", default="int4", choices=["int4", "int8"])
    parser.add_argument("--context", type=int, default=1024)
    parser.add_argument("--dispatch-us", type=float, default=100.0, help="assumed, for each call")
    parser.add_argument("--json", type=Path, help="write the figures here, too")
    args = parser.parse_args()
    whole = open_checkpoint(args.source).config
    excerpt = take_first_layers(args.source, args.layers)
    with tempfile.TemporaryDirectory() as folder:
        options = ExportOptions(NPU, args.precision, args.context)
        bundle = export_checkpoint(excerpt, Path(folder) / "npu", options, tell)
        graphs = bundle.manifest.graphs
        done = list(compile_graphs(bundle.path, graphs, [args.platform], tell, alike=False))
        for one in done:
            print(one, file=sys.stderr)
        result = add_up(whole, excerpt.config, done, args.dispatch_us, bundle.manifest.chunk)
        on_cpu = replace(options, experts="cpu")
        other = export_checkpoint(excerpt, Path(folder) / "cpu", on_cpu, tell)
        layer = excerpt.config.num_hidden_layers - 1
        chunk = bundle.manifest.chunk
        result["cpu_experts_s"] = {n: measure_cpu_experts(other, layer, n) for n in (1, chunk)}
    print_table(result)
    if args.json:
        args.json.write_text(json.dumps(result, indent=2))


if __name__ == "__main__":
    main()
