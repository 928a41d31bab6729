"""Prompts for another program, and how far its greedy tokens may be from ours."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from lfm2_deploy.bundle import Bundle
from lfm2_deploy.contracts import Runtime

# Of the largest logit. In integers kernels differ: experts and WebAssembly do not round
# activations as our CPU kernels do. The furthest of 5 x 64 tokens was 0.34 % of it in Node (demo
# model) and 1.1 % in WebAssembly (a tiny random one). Forgotten conv states cost 15 % and more.
ROUNDING = 0.03


def find_furthest(runtime: Runtime, prompt: Sequence[int], answer: Sequence[int]) -> float:
    """How much less likely than our choice any token of an answer is.

    Returns:
        largest distance of a token's logit from the likeliest one's, given all that is before it,
        as a share of the largest logit.
    """
    row = [*prompt, *answer]
    scored = runtime.open(1, len(row)).score([row])[0][len(prompt) - 1 : -1]
    chosen = scored[np.arange(len(answer)), list(answer)]
    return float((scored.max(-1) - chosen).max() / np.abs(scored).max())


def make_prompts(bundle: Bundle, *lengths: int) -> list[list[int]]:
    """Random ids; 0 to 7 are left to special tokens."""
    generator = np.random.default_rng(0)
    size = bundle.config.vocab_size
    return [generator.integers(8, size, length).tolist() for length in lengths]
