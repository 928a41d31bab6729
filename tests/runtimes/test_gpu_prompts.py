"""Prompts are appended token by token where several at once come out wrong."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from lfm2_deploy.bundle import Bundle
from lfm2_deploy.contracts import FloatArray
from lfm2_deploy.registry import find_runtime
from runtimes.gpu_model import GpuRuntime
from runtimes.gpu_prompts import check_prompts
from runtimes.gpu_session import GpuSession


@pytest.fixture
def runtime(bundle_of: Callable[..., Bundle]) -> GpuRuntime:
    loaded: GpuRuntime = find_runtime("webgpu")(bundle_of("dense", "fp32", "webgpu"), device="cpu")
    return loaded


def test_prompts_that_come_out_right_stay_in_one_piece(runtime: GpuRuntime) -> None:
    check_prompts(runtime)
    assert runtime.prompt_chunk is None


def test_prompts_that_come_out_wrong_are_appended_singly(
    runtime: GpuRuntime, monkeypatch: pytest.MonkeyPatch
) -> None:
    call, counts = GpuSession._call, []

    def lose_the_ninth(self: GpuSession, ids: Any, wanted: Any) -> FloatArray:
        counts.append(len(ids))
        logits = call(self, ids, wanted)
        return logits + np.float32(0.5) if len(ids) > 8 else logits

    monkeypatch.setattr(GpuSession, "_call", lose_the_ninth)
    check_prompts(runtime)
    assert runtime.prompt_chunk == 1
    counts.clear()
    runtime.open(1, 32).prefill([list(range(20))])
    assert counts == [1] * 20
