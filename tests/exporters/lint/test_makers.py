"""Where a value comes from is found, also in graphs that nothing can run."""

from __future__ import annotations

from pathlib import Path

import pytest

from exporters.lint.graph import Node, Value
from exporters.lint.makers import find_maker, trace
from lfm2_deploy.registry import LINTS

from .building import Sketch, op

A, B, X = Value("a"), Value("b"), Value("x")


def make(name: str, value: Value, result: Value) -> Node:
    """A node of one input and one output."""
    return Node(name, name, "", 1, (value,), (result,))


def test_casts_of_each_other_have_no_maker() -> None:
    made_by = {"a": make("Cast", B, A), "b": make("Cast", A, B)}
    assert find_maker(A, made_by) is None
    assert trace(A, made_by) is None


def test_cast_of_itself_has_no_maker() -> None:
    made_by = {"a": make("Cast", A, A)}
    assert find_maker(A, made_by) is None
    assert trace(A, made_by) is None


def test_maker_found_behind_a_cast() -> None:
    made_by = {"a": make("Sigmoid", X, A), "b": make("Cast", A, B)}
    assert find_maker(B, made_by) is made_by["a"]
    assert trace(B, made_by) is A
    assert find_maker(X, made_by) is None
    assert trace(X, made_by) is X


@pytest.mark.parametrize("target", LINTS)
def test_cyclic_graph_comes_to_an_end(target: str, tmp_path: Path) -> None:
    """Rules that follow values backwards all start in the circle here."""
    nodes = [
        op("Cast", "b", "a", to=1),
        op("Cast", "a", "b", to=1),
        op("QuantizeLinear", "a s", "q"),
        op("Gather", "a i", "g"),
        op("Mul", "a x", "m"),
        op("Add", "a x", "sum"),
        op("Softmax", "a", "p"),
        op("Softmax", "sum", "y"),
    ]
    constants = {"s": ("float32", []), "i": ("int64", [1])}
    path = Sketch(nodes, {"x": ("float32", [1, 8])}, constants).save(tmp_path)
    assert LINTS[target].load().lint([path]).nodes == len(nodes)
