"""Where QNN's rules end: what looks like a fault and is none, and the other way round."""

from __future__ import annotations

from pathlib import Path

import pytest
from onnx import helper

from exporters.lint.rules.qnn import QNN

from .building import Sketch, op
from .planted_providers import product


def list_faults(sketch: Sketch, folder: Path) -> list[tuple[str, str]]:
    """Rule and operator of each fault."""
    report = QNN.lint([sketch.save(folder)])
    return [(one.rule, one.operator) for one in report.faults]


@pytest.mark.parametrize("domain", ["acme", "com.microsoft"])
def test_known_name_in_another_domain_is_not_built(domain: str, tmp_path: Path) -> None:
    node = helper.make_node("Add", ["x", "x"], ["y"], domain=domain)
    sketch = Sketch([node], {"x": ("float32", [1, 8])})
    assert list_faults(sketch, tmp_path) == [("qnn/not-built", f"{domain}:Add")]


@pytest.mark.parametrize("name", ["Gelu", "ms.QuickGelu"])
def test_operator_of_a_known_domain_is_built(name: str, tmp_path: Path) -> None:
    assert list_faults(Sketch([op(name)], {"x": ("float32", [1, 8])}), tmp_path) == []


def test_constant_second_factor_keeps_its_bits(tmp_path: Path) -> None:
    """The provider converts those to int16."""
    assert list_faults(product("uint16", constant=True), tmp_path) == []


def test_second_factor_quantized_in_the_graph_is_found(tmp_path: Path) -> None:
    nodes = [
        op("DequantizeLinear", "a s z", "x"),
        op("QuantizeLinear", "b s z", "q"),
        op("DequantizeLinear", "q s z", "w"),
        op("MatMul", "x w"),
    ]
    given = {"a": ("uint16", [1, 8]), "b": ("float32", [8, 8])}
    sketch = Sketch(nodes, given, {"s": ("float32", []), "z": ("uint16", [])})
    assert list_faults(sketch, tmp_path) == [("qnn/second-factor", "MatMul")]
