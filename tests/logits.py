"""Rows of tokens, and how far two runtimes' logits are apart."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch

from lfm2_deploy.contracts import FloatArray, Runtime, Session

# onnxruntime 1.32's own switch: QMoE without 8-bit activations, as in all versions before 1.31
# (contrib_ops/cpu/moe/moe_quantization_cpu.cc). It is read when a session is made.
FLOAT_EXPERTS = ("ORT_QMOE_CPU_QNBIT_GEMM", "fp32")


def relative_error(actual: FloatArray, expected: FloatArray) -> float:
    """The largest difference, as a share of the largest logit."""
    assert actual.shape == expected.shape
    return float(np.abs(actual - expected).max() / np.abs(expected).max())


def make_rows(*lengths: int) -> list[list[int]]:
    """Random rows that share no beginning; ids 0 to 7 are left to special tokens."""
    generator = np.random.default_rng(0)
    return [generator.integers(8, 512, length).tolist() for length in lengths]


def decode_row(session: Session, tokens: Sequence[int]) -> FloatArray:
    return np.concatenate([session.decode([token]) for token in tokens])


def generate(runtime: Runtime, prompt: Sequence[int], count: int) -> list[int]:
    """Greedy tokens."""
    session = runtime.open(1, len(prompt) + count)
    logits, tokens = session.prefill([prompt]), []
    for _ in range(count):
        tokens.append(int(logits[0].argmax()))
        logits = session.decode([tokens[-1]])
    return tokens


@torch.inference_mode()
def run_transformers(model: Any, row: Sequence[int]) -> FloatArray:
    """Logits of a whole row, without a cache."""
    logits: FloatArray = model(torch.tensor([list(row)]), use_cache=False).logits[0].numpy()
    return logits
