"""The shipped tables are whole, and a node gets the kernel ONNX Runtime would give it."""

from __future__ import annotations

import json
from importlib import resources
from pathlib import Path

import onnx
import pytest
from onnx import TensorProto, helper

from exporters.lint.graph import MICROSOFT, Node, Value
from exporters.lint.kernels import find_misfit, load_imported, load_schemas, load_table
from exporters.lint.read_onnx import read_onnx

from .building import Sketch, ints, op

TYPES = frozenset(
    {
        *("float16", "float32", "float64", "bfloat16", "bool", "string", "complex64", "complex128"),
        *("int2", "int4", "int8", "int16", "int32", "int64"),
        *("uint2", "uint4", "uint8", "uint16", "uint32", "uint64", "float4e2m1"),
        *("float8e4m3fn", "float8e4m3fnuz", "float8e5m2", "float8e5m2fnuz", "float8e8m0"),
    }
)


def node(op: str, since: int, domain: str = "", *types: str) -> Node:
    """A node with inputs of these types."""
    values = tuple(Value(f"v{index}", type) for index, type in enumerate(types))
    return Node(op, op, domain, since, values, ())


@pytest.mark.parametrize(("name", "count"), [("directml", 404), ("webgpu", 300), ("cpu", 1400)])
def test_table_is_sound(name: str, count: int) -> None:
    text = (resources.files("exporters.lint") / "tables" / f"{name}.json").read_text("utf-8")
    raw = json.loads(text)
    assert raw["made_by"].startswith("scripts/")
    assert "MIT License" in raw["derived_from"]
    rows = raw["operators"]
    assert len(rows) == count if name == "directml" else len(rows) > count
    for row in rows:
        assert row["domain"] in ("", MICROSOFT, "com.microsoft.dml")
        assert 1 <= row["since"] <= row.get("until", 64)
        for words in row["types"].values():
            plain = {word for word in words.split() if not word.startswith("seq(")}
            assert words == "all" or plain <= TYPES


@pytest.mark.parametrize("op", ["QMoE", "MoE", "CausalConvWithState", "GatherBlockQuantized"])
def test_directml_lacks_what_mixtures_and_convolutions_need(op: str) -> None:
    assert load_table("directml").find(node(op, 1, MICROSOFT)) == ()


@pytest.mark.parametrize(
    ("op", "since", "there"),
    [("Conv", 11, True), ("Conv", 22, False), ("Reshape", 21, True), ("Reshape", 23, False)],
)
def test_directml_takes_exact_versions(op: str, since: int, there: bool) -> None:
    assert bool(load_table("directml").find_version(node(op, since))) is there


def test_range_of_versions_is_taken_with_its_ends() -> None:
    cpu = load_table("cpu")
    assert [bool(cpu.find_version(node("Conv", since))) for since in (1, 10, 11, 21, 22)] == [
        True
    ] * 5
    assert not cpu.find_version(node("Conv", 23))


def test_type_of_a_parameter_is_compared() -> None:
    kernel = load_table("directml").find(node("MatMulNBits", 1, MICROSOFT))[0]
    fine = node("MatMulNBits", 1, MICROSOFT, "float16", "uint8", "float16")
    wrong = node("MatMulNBits", 1, MICROSOFT, "float64", "uint8", "float64")
    assert find_misfit(fine, kernel) is None
    assert find_misfit(wrong, kernel) == ("T1 is float64", "float32 or float16")


def test_type_that_is_not_known_is_not_held_against_a_node() -> None:
    kernel = load_table("directml").find(node("Sqrt", 13))[0]
    assert find_misfit(Node("n", "Sqrt", "", 13, (Value("x"),), ()), kernel) is None


def test_schemas_and_imports_are_there() -> None:
    assert load_schemas()[MICROSOFT, "SkipSimplifiedLayerNormalization"].outputs[3] == "T"
    assert {"MatMulNBits", "GroupQueryAttention"} <= load_imported()[MICROSOFT]
    assert "QMoE" not in load_imported()[MICROSOFT]
    assert len(load_imported()[""]) > 150


def test_types_and_shapes_are_followed_through_both_domains(tmp_path: Path) -> None:
    sketch = Sketch(
        [
            op("ms.MatMulNBits", "x w s", "m", K=64, N=16, bits=4, block_size=32),
            op("ms.QuickGelu", "m", "g"),
            op("Reshape", "g shape", "r"),
            op("Cast", "r", "y", to=10),
        ],
        constants={
            "w": ("uint8", [16, 2, 16]),
            "s": ("float32", [16, 2]),
            "shape": ints(0, 0, 4, 4),
        },
    )
    graph = read_onnx(sketch.save(tmp_path))
    values = {value.name: value for one in graph.nodes for value in one.outputs if value}
    assert (values["m"].type, values["m"].shape) == ("float32", (1, "n", 16))
    assert (values["g"].type, values["g"].shape) == ("float32", (1, "n", 16))
    assert values["r"].rank == 4
    assert values["y"].type == "float16"


def test_shapes_pass_through_fused_products_and_sums(tmp_path: Path) -> None:
    nodes = [
        op("ms.FusedMatMul", "x table", "wide", transB=1),
        op("ms.SkipSimplifiedLayerNormalization", "wide wide gamma", "h - - sum"),
        op("ms.FusedMatMul", "sum table", "narrow"),
        op("Sigmoid", "narrow"),
    ]
    constants = {"table": ("float32", [128, 64]), "gamma": ("float32", [128])}
    graph = read_onnx(Sketch(nodes, constants=constants).save(tmp_path))
    shapes = {value.name: value.shape for one in graph.nodes for value in one.outputs if value}
    assert shapes["wide"] == shapes["h"] == shapes["sum"] == (1, "n", 128)
    assert shapes["narrow"] == shapes["y"] == (1, "n", 64)


def test_nodes_of_constants_alone_are_folded(tmp_path: Path) -> None:
    sketch = Sketch(
        [op("Add", "a b", "c"), op("Slice", "x c b")], constants={"a": ints(1), "b": ints(2)}
    )
    graph = read_onnx(sketch.save(tmp_path))
    assert [one.op for one in graph.live] == ["Slice"]
    sliced = next(graph.live).input(1)
    assert sliced is not None
    assert sliced.constant


def test_initializer_that_is_described_again_stays_constant(tmp_path: Path) -> None:
    path = Sketch([op("Reshape", "x s")], constants={"s": ints(-1)}).save(tmp_path)
    model = onnx.load(path)
    model.graph.value_info.append(helper.make_tensor_value_info("s", TensorProto.INT64, [1]))
    onnx.save(model, path)
    shape = read_onnx(path).nodes[0].input(1)
    assert shape is not None
    assert shape.constant


def test_input_with_a_default_is_no_constant(tmp_path: Path) -> None:
    sketch = Sketch(
        [op("Reshape", "x s")],
        {"x": ("float32", [2, 2]), "s": ("int64", [1])},
        {"s": ints(-1)},
    )
    graph = read_onnx(sketch.save(tmp_path))
    shape = graph.nodes[0].input(1)
    assert shape is not None
    assert (shape.constant, shape.is_input) == (False, True)
    assert [one.name for one in graph.inputs] == ["x", "s"]


def test_numbers_that_can_be_told_complete_what_the_file_says(tmp_path: Path) -> None:
    path = Sketch([op("Sigmoid", "x", "h"), op("Sqrt", "h")], {"x": ("float32", [1, 8])}).save(
        tmp_path
    )
    model = onnx.load(path)
    model.graph.value_info.append(
        helper.make_tensor_value_info("h", TensorProto.FLOAT, ["n", None])
    )
    onnx.save(model, path)
    hidden = read_onnx(path).nodes[0].output(0)
    assert hidden is not None
    assert hidden.shape == (1, 8)


def test_unknown_operator_leaves_unknown_types(tmp_path: Path) -> None:
    graph = read_onnx(
        Sketch([op("ms.NobodysOperator", "x", "h"), op("Sigmoid", "h")]).save(tmp_path)
    )
    assert [value.type for one in graph.nodes for value in one.outputs if value] == [None, None]
