"""Exports that other tools made of one tiny checkpoint, and folders laid out as they are found."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

DATA = Path(__file__).parent / "data"
CHECKPOINT = DATA / "checkpoint"
GENAI_14, GENAI_18, INTEL = (
    DATA / name for name in ("genai-0.14", "genai-0.18-fp16", "optimum-intel")
)
TOKENS = np.random.default_rng(0).integers(0, 64, 40).tolist()


@pytest.fixture(scope="session")
def truth() -> NDArray[np.float32]:
    """Logits [40, V] after each of `TOKENS`, of transformers' own model in float32."""
    import torch
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(CHECKPOINT, dtype=torch.float32)
    with torch.no_grad():
        logits: NDArray[np.float32] = model(torch.tensor([TOKENS])).logits[0].numpy()
    return logits


@pytest.fixture
def lay_out(tmp_path: Path) -> Callable[..., Path]:
    """Make a folder as on the Hub: graphs in onnx/, config.json above."""

    def make(*variants: str) -> Path:
        folder = tmp_path / "LFM2-Tiny-ONNX"
        (folder / "onnx").mkdir(parents=True)
        for name in ("config.json", "generation_config.json"):
            shutil.copy(CHECKPOINT / name, folder)
        for variant in variants:
            stem = f"model_{variant}" if variant else "model"
            shutil.copy(GENAI_14 / "model.onnx", folder / "onnx" / f"{stem}.onnx")
        shutil.copy(GENAI_14 / "model.onnx.data", folder / "onnx")
        return folder

    return make
