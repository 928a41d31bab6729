"""What transformers.js wants otherwise: plain tables, and logits of the positions it asks for."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime as ort
import pytest

from lfm2_deploy.api import export
from lfm2_deploy.bundle import Bundle
from lfm2_deploy.contracts import Runtime

IDS = [1, 17, 300, 9, 255]
# Both sum the same products in another order.
ROUNDING = 1e-5


@pytest.fixture(scope="module")
def bundle(checkpoints: Any, tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    place = tmp_path_factory.mktemp("plain") / "bundle"
    return export(str(checkpoints["dense"]), place, precision="int8", io=["transformersjs"])


def run_js_graph(bundle: Bundle, keep: int) -> np.ndarray:
    session = ort.InferenceSession(str(bundle.path / "onnx/model_quantized.onnx"))
    feeds = {
        "input_ids": np.array([IDS], np.int64),
        "attention_mask": np.ones((1, len(IDS)), np.int64),
        "num_logits_to_keep": np.array(keep, np.int64),
    }
    for spec in session.get_inputs():
        if spec.name.startswith("past"):
            shape = [d if isinstance(d, int) else int(d == "batch_size") for d in spec.shape]
            feeds[spec.name] = np.zeros(shape, np.float32)
    logits: np.ndarray = session.run(["logits"], feeds)[0][0]
    return logits


@pytest.mark.parametrize(("keep", "count"), [(0, len(IDS)), (1, 1), (3, 3)])
def test_as_many_logits_come_as_are_asked_for_and_zero_means_all(
    keep: int, count: int, bundle: Bundle, open_ort: Any
) -> None:
    runtime: Runtime = open_ort(bundle)
    ours = runtime.open(1, len(IDS)).score([IDS])[0]
    found = run_js_graph(bundle, keep)
    assert found.shape == (count, bundle.config.vocab_size)
    assert np.abs(found - ours[-count:]).max() < ROUNDING * np.abs(ours).max()


def test_graph_for_browsers_has_no_operator_that_webassembly_lacks(bundle: Bundle) -> None:
    file: Path = bundle.path / "onnx/model_quantized.onnx"
    graph = onnx.load(file, load_external_data=False).graph
    assert "GatherBlockQuantized" not in {node.op_type for node in graph.node}
    # The head's bytes serve as the table: one initializer and not two over the same bytes.
    tables = [tensor.name for tensor in graph.initializer if "embed_tokens" in tensor.name]
    assert sorted(tables) == ["model.embed_tokens.weight.q8", "model.embed_tokens.weight.scales"]
