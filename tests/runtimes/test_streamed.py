"""The reference layer by layer, against the reference in one piece."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np
import pytest

from lfm2_deploy.checkpoint import open_checkpoint
from lfm2_deploy.compare.scorer import Request, RuntimeScorer
from lfm2_deploy.contracts import ignore_progress
from lfm2_deploy.registry import find_runtime
from lfm2_deploy.states import list_states
from runtimes.streamed import StreamedScorer


@pytest.mark.parametrize("kind", ["dense", "moe"])
def test_streamed_rows_of_any_length_are_those_of_the_reference(
    checkpoints: Mapping[str, Path], kind: str
) -> None:
    checkpoint = open_checkpoint(str(checkpoints[kind]))
    requests = [Request([5, 6, 7], 0, states=True), Request(list(range(20)), 9, states=True)]
    whole = RuntimeScorer(find_runtime("reference")(checkpoint), list_states(checkpoint.config), "")
    pairs = zip(
        StreamedScorer(checkpoint).score(requests, ignore_progress),
        whole.score(requests, ignore_progress),
        strict=True,
    )
    for streamed, expected in pairs:
        # Sums in another order move logits, of size 10, by float32's rounding.
        np.testing.assert_allclose(streamed.logits, expected.logits, atol=1e-4)
        assert streamed.states is not None
        assert expected.states is not None
        assert streamed.states.keys() == expected.states.keys()
        for name, state in streamed.states.items():
            np.testing.assert_allclose(state, expected.states[name], atol=1e-4)
