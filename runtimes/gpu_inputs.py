"""What the host feeds a graph for GPUs besides states; see `lfm2_deploy/gpu_graphs.py`."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lfm2_deploy.gpu_graphs import CONV_ENDS, INPUT_IDS, LOGIT_ROWS, POSITIONS, SEQLENS, TOTAL


def pad_logits(steps: int, logit_count: int) -> int:
    """K of a graph of fixed shape: logits of one token, or of each of the S."""
    return steps if logit_count > 1 else 1


# Any token will do: nothing reads what comes of padding.
_PADDING = 0


def list_inputs(
    ids: Sequence[int],
    held: int,
    wanted: Sequence[int],
    *,
    steps: int,
    logit_count: int,
    conv_width: int,
) -> dict[str, NDArray[Any]]:
    """Inputs of one call, by name; a graph may lack some.

    Args:
        ids: the tokens to append.
        held: tokens there are already.
        wanted: which of the tokens' logits to give.
        steps: S, at least as many as there are tokens; the rest is padding.
        logit_count: K, at least as many as are wanted; the rest repeats the last.
        conv_width: L-1.
    """
    count = len(ids)
    rows = [*wanted, *[wanted[-1]] * (logit_count - len(wanted))]
    # Padding stands at the last token's position, which the tables surely hold.
    positions = held + np.minimum(np.arange(steps), count - 1)
    return {
        INPUT_IDS: np.array([[*ids, *[_PADDING] * (steps - count)]], np.int64),
        POSITIONS: positions.astype(np.int64)[None],
        SEQLENS: np.array([held + count - 1], np.int32),
        TOTAL: np.array([held + steps], np.int32),
        LOGIT_ROWS: np.array(rows, np.int64),
        CONV_ENDS: np.arange(count, count + conv_width, dtype=np.int64),
    }
