"""Compare WebGPU with the CPU on bundles, where WebGPU is built into onnxruntime.

    python scripts/check_webgpu_wheel.py BUNDLE...

The wheel onnxruntime-webgpu shares its import name with onnxruntime, so it is checked in an
environment of its own; with the plugin onnxruntime-ep-webgpu it does the same. Each bundle is one
for target `webgpu`. In float32, greedy tokens of its graph on WebGPU and on the CPU must be the
same; where it computes in float16, rounding may decide between tokens that are nearly equally
likely, and no other may differ. Logits must be close. Exits with 1 on a
difference, with 2 where WebGPU runs nothing.

On a machine without a GPU: scripts/set_up_software_vulkan.sh, and in the environment
VK_ICD_FILENAMES and ORT_WEBGPU_EP_ALLOW_SOFTWARE_ADAPTER=1.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import onnxruntime as ort

from lfm2_deploy import tokenizer
from lfm2_deploy.bundle import Bundle, open_bundle
from lfm2_deploy.contracts import FloatArray, Runtime
from lfm2_deploy.errors import Lfm2DeployError, RuntimeUnavailableError
from lfm2_deploy.registry import find_runtime

PROMPT = "It is a truth universally acknowledged, that a single man"
PROMPT_LENGTH, COUNT = 12, 64
# Shares of the largest logit at the median position: float32 in another order of sums, and
# float16, which rounds each time.
TOLERANCES = {"fp32": 1e-4, "fp16": 1e-2, "int8": 1e-2, "int4": 1e-2}


def choose_prompt(bundle: Bundle) -> list[int]:
    """Text where the bundle has a tokenizer, any tokens where not."""
    if (bundle.path / "tokenizer.json").is_file():
        return tokenizer.Tokenizer.from_folder(bundle.path).encode(PROMPT, add_special_tokens=True)
    generator = np.random.default_rng(0)
    return [int(n) for n in generator.integers(8, bundle.config.vocab_size, PROMPT_LENGTH)]


def generate(runtime: Runtime, prompt: Sequence[int]) -> list[int]:
    """Greedy tokens."""
    session = runtime.open(1, len(prompt) + COUNT)
    logits, tokens = session.prefill([prompt]), []
    for _ in range(COUNT):
        tokens.append(int(logits[0].argmax()))
        logits = session.decode([tokens[-1]])
    return tokens


def score(runtime: Runtime, row: Sequence[int]) -> FloatArray:
    """Logits of every position."""
    return runtime.open(1, len(row)).score([row])[0]


def check(path: Path) -> bool:
    """Whether WebGPU and the CPU agree on a bundle; prints a line."""
    bundle = open_bundle(path)
    prompt = choose_prompt(bundle)
    load = find_runtime("webgpu")
    gpu, cpu = load(bundle), load(bundle, device="cpu")
    started = time.perf_counter()
    tokens = generate(gpu, prompt)
    seconds = time.perf_counter() - started
    expected = generate(cpu, prompt)
    row = [*prompt, *expected[:-1]]
    logits = score(cpu, row)
    own = score(gpu, row)
    errors = np.abs(own - logits).max(-1) / np.abs(logits).max()
    same = sum(a == b for a, b in zip(tokens, expected, strict=True))
    typical, tolerance = float(np.median(errors)), TOLERANCES[bundle.manifest.precision]
    # How much less likely than the CPU's is what WebGPU would choose, after the same tokens.
    places = np.arange(len(row))
    lost = float((logits.max(-1) - logits[places, own.argmax(-1)]).max() / np.abs(logits).max())
    if bundle.manifest.precision == "fp32":
        agrees = same == COUNT and typical < tolerance
    else:
        agrees = lost < 2 * tolerance and typical < tolerance
    verdict = "OK" if agrees else "DIFFERENT"
    print(
        f"{verdict}: {bundle.manifest.model} {bundle.manifest.precision} on "
        f"{gpu.info.device}: {same} of {COUNT} tokens as on the CPU, logits {typical:.1e} apart "
        f"(median; at most {errors.max():.1e}), choices by {lost:.1e}, {seconds:.1f} s"
    )
    return agrees


def main() -> int:
    """Check every bundle; the process's exit code."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("bundles", nargs="+", type=Path, metavar="BUNDLE")
    bundles: list[Path] = parser.parse_args().bundles
    print(f"onnxruntime {ort.__version__}: {', '.join(ort.get_available_providers())}")
    try:
        agree = [check(path) for path in bundles]
    except RuntimeUnavailableError as error:
        print(f"WebGPU runs nothing here: {error}", file=sys.stderr)
        return 2
    except Lfm2DeployError as error:
        print(error, file=sys.stderr)
        return 1
    return 0 if all(agree) else 1


if __name__ == "__main__":
    sys.exit(main())
