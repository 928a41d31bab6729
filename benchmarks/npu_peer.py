"""What Intel's NPU compiler expects of optimum-intel's graph, made static as openvino-genai does.

    optimum-cli export openvino -m /tmp/hf --task text-generation-with-past \\
        --weight-format int4 --sym --group-size -1 --ratio 1.0 /tmp/optimum
    python benchmarks/npu_peer.py /tmp/optimum --context 1024 --steps 1 128

For comparison with `lfm2-deploy compile`. Estimates are the compiler's, never a measurement.
"""

from __future__ import annotations

import argparse
import json
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

from runtimes.npu_compiler.compiler import find_compiler

if TYPE_CHECKING:
    import openvino as ov


def make_static(folder: Path, context: int, steps: int) -> ov.Model:
    """The model with explicit states, for so many new tokens after context - steps others."""
    import openvino as ov
    from openvino._offline_transformations import stateful_to_stateless_transformation

    config = json.loads((folder / "config.json").read_text())
    kv = (config["num_key_value_heads"], config["hidden_size"] // config["num_attention_heads"])
    model = ov.Core().read_model(folder / "openvino_model.xml")
    stateful_to_stateless_transformation(model)
    shapes = {}
    for port in model.inputs:
        name = port.any_name
        if "conv" in name:
            shapes[name] = [1, config["hidden_size"], config["conv_L_cache"]]
        elif "key" in name or "value" in name:
            shapes[name] = [1, kv[0], context - steps, kv[1]]
        elif name == "attention_mask":
            shapes[name] = [1, context]
        else:
            shapes[name] = [1] if name == "beam_idx" else [1, steps]
    model.reshape(shapes)
    return model


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path, help="that optimum-intel made")
    parser.add_argument("--context", type=int, default=1024)
    parser.add_argument("--steps", type=int, nargs="+", default=[1, 128])
    parser.add_argument("--platform", default="4000")
    args = parser.parse_args()
    import openvino as ov

    compiler = find_compiler()
    for steps in args.steps:
        with tempfile.TemporaryDirectory() as scratch:
            graph = Path(scratch) / f"peer-{steps}.xml"
            ov.save_model(make_static(args.folder, args.context, steps), graph)
            verdict = compiler.compile(graph, args.platform, Path(scratch) / "blob")
        estimate = (verdict.estimated_us or 0) / 1000
        print(f"{steps} tokens: {estimate:.2f} ms, {verdict.blob_bytes / 1e6:.1f} MB")


if __name__ == "__main__":
    main()
