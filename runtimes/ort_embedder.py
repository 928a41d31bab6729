"""The look-up of embeddings, where a bundle's decoder takes embeddings in place of token ids."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnxruntime as ort
from numpy.typing import NDArray

from lfm2_deploy.contracts import FloatArray
from lfm2_deploy.static_graphs import EMBEDS, INPUT_IDS


class Embedder:
    """Token ids -> rows of the embedding table, through the graph that holds it."""

    def __init__(self, session: ort.InferenceSession) -> None:
        self._session = session

    def look_up(self, ids: NDArray[Any]) -> FloatArray:
        """Rows of the table.

        Args:
            ids: int64 [B, S]; a negative one gives row 0.

        Returns:
            float32 [B, S, H].
        """
        rows: FloatArray = self._session.run([EMBEDS], {INPUT_IDS: np.ascontiguousarray(ids)})[0]
        return rows
