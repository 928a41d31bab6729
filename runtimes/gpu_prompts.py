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

_CHECKED_TOKENS = 48
# Below what flash attention takes.
_SMALL = 16
# Of the largest logit, at the median position. In float32 1e-6 is order of sums, and 5e-3 and
# more was seen where attention is wrong; float16's rounding is up to 5e-3.
_TOLERANCES = {"float32": 1e-4, "float16": 1e-2}


def send_singly(runtime: GpuRuntime) -> None:
    """Append prompts token by token, as experts in integers need it."""
    runtime.prompt_chunk = 1
    remark = (
        "prompts go token by token: WebGPU's mixture of experts loses tokens of larger calls "
        "(onnxruntime-ep-webgpu 0.4.0)"
    )
    runtime.info = replace(runtime.info, notes=(*runtime.info.notes, remark))


def check_prompts(runtime: GpuRuntime) -> None:
    """Cut prompts into pieces that come out right, where whole ones do not."""
    count = min(_CHECKED_TOKENS, runtime.context_length)
    tokens = [n % runtime.config.vocab_size for n in range(1, count + 1)]
    singly, small, whole = (_score(runtime, tokens, size) for size in (1, _SMALL, None))
    tolerance = _TOLERANCES[runtime.states[0].dtype]
    if _agree(whole, singly, tolerance):
        return
    runtime.prompt_chunk = _SMALL if _agree(small, singly, tolerance) else 1
    remark = (
        f"calls of {count} tokens come out otherwise than single ones on this device, so prompts "
        f"go in pieces of {runtime.prompt_chunk}, slower: update the GPU's driver, or export with "
        "--target cpu"
    )
    runtime.info = replace(runtime.info, notes=(*runtime.info.notes, remark))


def _score(runtime: GpuRuntime, tokens: Sequence[int], size: int | None) -> FloatArray:
    """Logits [S, V] of tokens that are appended in pieces."""
    runtime.prompt_chunk = size
    session = runtime.open(1, len(tokens))
    if size == 1:
        # As they are decoded, by recordings where there are any.
        return np.concatenate([session.decode([token]) for token in tokens])
    return session.score([tokens])[0]


def _agree(a: FloatArray, b: FloatArray, tolerance: float) -> bool:
    errors = np.abs(a - b).max(-1)
    return bool(np.median(errors) <= tolerance * np.abs(b).max())
