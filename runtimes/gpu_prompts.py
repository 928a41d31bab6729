"""How many tokens at once give what they give one by one.

Not any number does everywhere, and nothing is said:

- QMoE on WebGPU loses tokens where a call brings several: its shader clears the count of tokens of
  each expert in one workgroup while others may be counting already (moe/gate.wgsl.template of
  onnxruntime 1.32). Seen with onnxruntime-ep-webgpu 0.4.0 on Mesa's lavapipe (25.0.7), now and
  then in 4 bits and always in 8 bits of one model. So experts in integers get single tokens.
- Flash attention on lavapipe is wrong from the Nth token on, where N is the size of a subgroup
  (4 and 8 tried), in calls of 32 tokens and more with 0.4.0, and of 2 and more with
  onnxruntime-webgpu 1.27.0. Subgroups of 32 were wrong on NVIDIA, and were mended in
  onnxruntime's pull request 28520. So it is tried at load, and prompts are appended in the
  largest pieces that come out right.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np

from lfm2_deploy.contracts import FloatArray

if TYPE_CHECKING:
    from runtimes.gpu_model import GpuRuntime

# More than subgroups have lanes anywhere (128), so that those that are left out show.
_CHECKED_TOKENS = 144
_SINGLES = 32
# Below what flash attention takes.
_SMALL = 16
# Of the largest logit: sums in another order give 1e-6 in float32 and 0.003 in float16, wrong
# attention 0.02 and more in both.
_FLOORS = {"float32": 1e-4, "float16": 5e-3}
_QUANTILE = 0.9


def send_singly(runtime: GpuRuntime) -> None:
    """Append prompts token by token, as experts in integers need it."""
    runtime.prompt_chunk = 1
    remark = (
        "prompts go token by token: WebGPU's mixture of experts loses tokens of larger calls "
        "(onnxruntime-ep-webgpu 0.4.0)"
    )
    runtime.info = replace(runtime.info, notes=(*runtime.info.notes, remark))


def check_prompts(runtime: GpuRuntime) -> None:
    """Cut prompts into pieces that come out right, where whole ones do not.

    Small pieces are held to single tokens, and whole prompts to small pieces, where it counts: at
    the positions furthest back, of which all but a few must agree.
    """
    rng = np.random.default_rng(0)
    count = min(_CHECKED_TOKENS, runtime.context_length)
    tokens = rng.integers(0, runtime.config.vocab_size, count).tolist()
    few = tokens[:_SINGLES]
    floor = _FLOORS[runtime.states[0].dtype]
    small = _score(runtime, tokens, _SMALL)
    usual = _differ(small[: len(few)], _step(runtime, few))
    whole = _differ(_score(runtime, tokens, None), small)
    runtime.prompt_chunk = None
    if whole <= max(floor, 2 * usual) and usual <= 3 * floor:
        return
    runtime.prompt_chunk = _SMALL if usual <= 3 * floor else 1
    remark = (
        f"calls of {count} tokens come out otherwise than single ones on this device, so prompts "
        f"go in pieces of {runtime.prompt_chunk}, slower: update the GPU's driver, or export with "
        "--target cpu"
    )
    runtime.info = replace(runtime.info, notes=(*runtime.info.notes, remark))


def _score(runtime: GpuRuntime, tokens: Sequence[int], size: int | None) -> FloatArray:
    """Logits [S, V] of tokens that are appended in pieces."""
    runtime.prompt_chunk = size
    return runtime.open(1, len(tokens)).score([tokens])[0]


def _step(runtime: GpuRuntime, tokens: Sequence[int]) -> FloatArray:
    """The same, as tokens are decoded: by recordings where there are any."""
    session = runtime.open(1, len(tokens))
    return np.concatenate([session.decode([token]) for token in tokens])


def _differ(a: FloatArray, b: FloatArray) -> float:
    """How far nearly all of the last half of the positions are apart, of the largest logit."""
    errors = np.abs(a - b).max(-1)[len(a) // 2 :]
    return float(np.quantile(errors, _QUANTILE) / np.abs(b).max())
