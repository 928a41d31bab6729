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
    assert runtime.info.notes == ()


@pytest.mark.parametrize(("wrong_calls", "size"), [(32, 16), (9, 1)])
@pytest.mark.parametrize("lane", [8, 32, 64])
def test_prompts_that_come_out_wrong_are_cut_into_pieces_that_do_not(
    wrong_calls: int, size: int, lane: int, runtime: GpuRuntime, monkeypatch: pytest.MonkeyPatch
) -> None:
    call, counts = GpuSession._call, []

    def spoil(self: GpuSession, ids: Any, wanted: Any) -> FloatArray:
        """Wrong from some position of the row on, in calls of so many tokens, as was seen."""
        counts.append(len(ids))
        logits = call(self, ids, wanted).copy()
        if len(ids) >= wrong_calls:
            # Small pieces are compared with singles in the first 32 positions only.
            first = lane if wrong_calls > 16 else 8
            places = self.lengths[0] + np.asarray(wanted)
            logits[places >= first] += 0.05 * np.abs(logits).max()
        return logits

    monkeypatch.setattr(GpuSession, "_call", spoil)
    check_prompts(runtime)
    assert runtime.prompt_chunk == size
    (note,) = runtime.info.notes
    assert f"pieces of {size}" in note
    counts.clear()
    runtime.open(1, 64).prefill([list(range(48))])
    assert counts == [size] * (48 // size)
