"""How many tokens at once give what they give one by one.

Not any number does everywhere, and nothing is said. On Mesa's lavapipe (25.0.7), single tokens
were right, and of several at once were wrong:

- with flash attention, all from the Nth on, where N is the size of a subgroup (4 and 8 tried):
  calls of 32 tokens and more with onnxruntime-ep-webgpu 0.4.0, of 2 and more with
  onnxruntime-webgpu 1.27.0. Subgroups of 32 were wrong on NVIDIA, and were mended in
  onnxruntime's pull request 28520;
- QMoE in 8 bits of experts 96 wide, from calls of 4 tokens on, with 0.4.0.

So it is tried at load, and prompts are appended in the largest pieces that come out right.
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
# Below what flash attention takes; then the one size that is surely right.
_PIECES = (16, 1)
# Of the largest logit, at the median position. In float32 1e-6 is order of sums, and 5e-3 and
# more was seen where attention is wrong; float16's rounding is up to 5e-3.
_TOLERANCES = {"float32": 1e-4, "float16": 1e-2}


def check_prompts(runtime: GpuRuntime) -> None:
    """Cut prompts into pieces that come out right, where whole ones do not."""
    count = min(_CHECKED_TOKENS, runtime.context_length)
    tokens = [n % runtime.config.vocab_size for n in range(1, count + 1)]
    session = runtime.open(1, count)
    singly = np.concatenate([session.decode([token]) for token in tokens])
    if _comes_out(runtime, tokens, singly):
        return
    for size in _PIECES:
        runtime.prompt_chunk = size
        if size == 1 or _comes_out(runtime, tokens, singly):
            break
    remark = (
        f"calls of {count} tokens come out otherwise than single ones on this device, so prompts "
        f"go in pieces of {runtime.prompt_chunk}, slower: update the GPU's driver, or export with "
        "--target cpu"
    )
    runtime.info = replace(runtime.info, notes=(*runtime.info.notes, remark))


def _comes_out(runtime: GpuRuntime, tokens: Sequence[int], singly: FloatArray) -> bool:
    (found,) = runtime.open(1, len(tokens)).score([tokens])
    errors = np.abs(found - singly).max(-1)
    tolerance = _TOLERANCES[runtime.states[0].dtype]
    return bool(np.median(errors) <= tolerance * np.abs(singly).max())
