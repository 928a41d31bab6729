"""An OpenVINO IR (.xml and .bin) -> a `Graph`, whose operators have the domain "openvino"."""

from __future__ import annotations

import struct
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any
from xml.etree import ElementTree
from xml.etree.ElementTree import Element

from exporters.lint.graph import OPENVINO, Dim, Graph, Node, Value
from lfm2_deploy.errors import BundleError

# Constants up to so many elements are read.
_MOST_CONTENT = 64
_NAMES = {"FP32": "float32", "FP16": "float16", "FP64": "float64", "BF16": "bfloat16"}
_FORMATS = {"i64": "q", "i32": "i", "f32": "f", "u8": "B", "i8": "b", "boolean": "?"}


def read_ir(path: Path) -> Graph:
    """Read a graph; of its weights, small constants alone.

    Args:
        path: the .xml file; its .bin beside it may be absent.

    Raises:
        BundleError: it is no OpenVINO IR.
    """
    try:
        root = ElementTree.parse(path).getroot()
    except (OSError, ElementTree.ParseError) as error:
        raise BundleError(f"{path} cannot be read as an OpenVINO IR ({error})") from error
    if root.tag != "net" or root.find("layers") is None:
        raise BundleError(f"{path} is no OpenVINO IR: expected <net> with <layers>")
    try:
        return _read_net(root, path)
    except (KeyError, ValueError) as error:
        raise BundleError(
            f"{path} is no whole OpenVINO IR ({error}): save it again with openvino.save_model"
        ) from error


def _read_net(root: Element, path: Path) -> Graph:
    values = dict(_read_values(root, path.with_suffix(".bin")))
    edges = {_end(edge, "to"): values.get(_end(edge, "from")) for edge in root.iter("edge")}
    nodes = tuple(_read_node(layer, values, edges) for layer in root.findall("layers/layer"))
    return Graph(
        path.name,
        tuple(node for node in nodes if node.op not in ("Const", "Parameter", "Result")),
        tuple(value for value in values.values() if value.is_input),
        (),
        constants=tuple(value for value in values.values() if value.constant),
        names_of_states=tuple(_find_states(root)),
    )


def _end(edge: Element, side: str) -> tuple[str, str]:
    return edge.attrib[f"{side}-layer"], edge.attrib[f"{side}-port"]


def _find_states(root: Element) -> Iterator[str]:
    for layer in root.findall("layers/layer"):
        data = layer.find("data")
        if layer.get("type") == "ReadValue" and data is not None:
            yield data.get("variable_id", "")


def _read_values(root: Element, weights: Path) -> Iterator[tuple[tuple[str, str], Value]]:
    for layer in root.findall("layers/layer"):
        kind, data = layer.get("type"), layer.find("data")
        content = _read_content(data, weights) if kind == "Const" and data is not None else None
        for port in layer.findall("output/port"):
            name = layer.get("name", "") if kind == "Parameter" else _name(layer, port)
            precision = port.get("precision", "")
            yield (
                (layer.attrib["id"], port.attrib["id"]),
                Value(
                    name,
                    _NAMES.get(precision, _write_out(precision)),
                    tuple(map(_read_dim, port.findall("dim"))),
                    kind == "Const",
                    content,
                    kind == "Parameter",
                ),
            )


def _name(layer: Element, port: Element) -> str:
    return f"{layer.get('name')}:{port.get('id')}"


def _write_out(precision: str) -> str:
    """I64 -> int64, U4 -> uint4, BOOL -> bool."""
    signs = {"I": "int", "U": "uint"}
    known = precision[:1] in signs and precision[1:].isdigit()
    return signs[precision[0]] + precision[1:] if known else precision.lower()


def _read_dim(dim: Element) -> Dim:
    size = int(dim.text or -1)
    return None if size < 0 else size


def _read_content(data: Element, weights: Path) -> tuple[Any, ...] | None:
    form, size = _FORMATS.get(data.get("element_type", "")), int(data.get("size", "0"))
    if form is None or not weights.is_file() or size > _MOST_CONTENT * struct.calcsize(form):
        return None
    with weights.open("rb") as file:
        file.seek(int(data.get("offset", "0")))
        raw = file.read(size)
    count = len(raw) // struct.calcsize(form)
    return struct.unpack(f"<{count}{form}", raw) if len(raw) == size else None


def _read_node(
    layer: Element,
    values: Mapping[tuple[str, str], Value],
    edges: Mapping[tuple[str, str], Value | None],
) -> Node:
    id, data = layer.attrib["id"], layer.find("data")
    return Node(
        layer.get("name", id),
        layer.get("type", ""),
        OPENVINO,
        None,
        tuple(edges.get((id, port.attrib["id"])) for port in layer.findall("input/port")),
        tuple(values[id, port.attrib["id"]] for port in layer.findall("output/port")),
        dict(data.attrib) if data is not None else {},
    )
