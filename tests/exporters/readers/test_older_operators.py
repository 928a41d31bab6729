"""The legacy graph has nothing that ONNX Runtime 1.26 does not know."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import onnx
import pytest

from lfm2_deploy.api import export

# Seen with onnxruntime 1.26.0, which refuses the canonical graph for each of them in turn.
NEWER = {"CausalConvWithState", "accuracy_level", "weights_prepacked"}


def list_words(model: onnx.ModelProto) -> set[str]:
    """Operators, and the attributes of experts."""
    experts = [node for node in model.graph.node if node.op_type == "QMoE"]
    return {node.op_type for node in model.graph.node} | {
        attribute.name for node in experts for attribute in node.attribute
    }


@pytest.fixture(scope="module")
def graphs(
    checkpoints: Mapping[str, Path], tmp_path_factory: pytest.TempPathFactory
) -> Mapping[str, onnx.ModelProto]:
    """The canonical graph of an int4 mixture, and the legacy one beside it."""
    place = tmp_path_factory.mktemp("older") / "bundle"
    bundle = export(str(checkpoints["moe"]), place, io=["genai-legacy"])
    names = {"canonical": "model.onnx", "legacy": "model_genai_legacy.onnx"}
    return {
        name: onnx.load(bundle.path / file, load_external_data=False)
        for name, file in names.items()
    }


def test_newer_operators_and_attributes_are_written_out(
    graphs: Mapping[str, onnx.ModelProto],
) -> None:
    assert list_words(graphs["canonical"]) >= NEWER
    assert not list_words(graphs["legacy"]) & NEWER
    convolutions = [n for n in graphs["legacy"].graph.node if n.op_type == "Conv"]
    states = [v for v in graphs["legacy"].graph.input if v.name.startswith("past_conv")]
    assert len(convolutions) == len(states) == 4


def test_attention_takes_no_more_inputs_than_it_had(
    graphs: Mapping[str, onnx.ModelProto],
) -> None:
    def count(name: str) -> set[int]:
        nodes = graphs[name].graph.node
        return {len(node.input) for node in nodes if node.op_type == "GroupQueryAttention"}

    assert count("canonical") == {17}
    assert count("legacy") == {9}
