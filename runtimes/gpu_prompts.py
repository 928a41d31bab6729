"""Whether several tokens at once give what they give one by one.

They do not everywhere, and nothing is said. On Mesa's lavapipe (25.0.7) single tokens were right,
and of several at once were wrong: in float32, from the ninth token on, with onnxruntime-webgpu
1.27.0; and QMoE in 8 bits, of experts 96 wide, with onnxruntime-ep-webgpu 0.4.0. So it is tried at
load, and where it is wrong prompts are appended token by token.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from runtimes.gpu_model import GpuRuntime

_CHECKED_TOKENS = 48
# Of the largest logit, at the median position. In float32 1e-6 is order of sums, and 5e-3 and
# more was seen where attention is wrong; float16's rounding is up to 5e-3.
_TOLERANCES = {"float32": 1e-4, "float16": 1e-2}


def check_prompts(runtime: GpuRuntime) -> None:
    """Append prompts token by token where several at once give other logits."""
    count = min(_CHECKED_TOKENS, runtime.context_length)
    tokens = [n % runtime.config.vocab_size for n in range(1, count + 1)]
    (together,) = runtime.open(1, count).score([tokens])
    session = runtime.open(1, count)
    singly = np.concatenate([session.decode([token]) for token in tokens])
    errors = np.abs(together - singly).max(-1)
    tolerance = _TOLERANCES[runtime.states[0].dtype]
    if not np.median(errors) <= tolerance * np.abs(singly).max():
        runtime.prompt_chunk = 1
