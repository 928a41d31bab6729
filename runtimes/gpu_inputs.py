"""What the host feeds a graph for GPUs besides states; see `lfm2_deploy/gpu_graphs.py`."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lfm2_deploy.gpu_graphs import INPUT_IDS, LOGIT_ROWS, POSITIONS, SEQLENS, TOTAL


def list_inputs(ids: Sequence[int], held: int, wanted: Sequence[int]) -> dict[str, NDArray[Any]]:
    """Inputs of one call, by name; a graph may lack some.

    Args:
        ids: the S tokens to append.
        held: tokens there are already.
        wanted: which of the S tokens' logits to give.
    """
    total = held + len(ids)
    return {
        INPUT_IDS: np.asarray(ids, np.int64)[None],
        POSITIONS: np.arange(held, total, dtype=np.int64)[None],
        SEQLENS: np.array([total - 1], np.int32),
        TOTAL: np.array([total], np.int32),
        LOGIT_ROWS: np.asarray(wanted, np.int64),
    }
