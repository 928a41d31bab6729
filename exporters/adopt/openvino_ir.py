"""An OpenVINO IR of optimum-intel -> a bundle's graph, as it is.

Enters: openvino_model.xml with its .bin. Leaves: both in a bundle's folder, byte for byte, and what
the graph is seen to be. The runtime finds states by the names optimum-intel gives them. Nothing is
run, and OpenVINO is not needed.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from xml.etree import ElementTree
from xml.etree.ElementTree import Element

from exporters.lint.graph import Graph, Node
from exporters.lint.read_ir import read_ir
from lfm2_deploy.config import Lfm2Config
from lfm2_deploy.errors import SourceError
from lfm2_deploy.imported import LEFT_PADDING, NO_PROPOSALS, ONE_ROW, POSITION_IDS
from lfm2_deploy.importing.adopted import Adopted, place_file
from lfm2_deploy.states import list_states

GRAPH, WEIGHTS = "openvino_model.xml", "openvino_model.bin"
_NEEDED = ("input_ids", "attention_mask", "beam_idx")
_INPUTS = {*_NEEDED, "position_ids"}
_VARIABLE = re.compile(r"cache_params\.past\.(conv|key|value)\.(\d+)cache_params\.present\.")
_KINDS = ("conv", "key", "value")
# Element types of weights -> precision, the fewest bits first.
_PRECISIONS = (
    ({"uint4", "int4", "nf4"}, "int4"),
    ({"uint8", "int8", "f8e4m3", "f8e5m2"}, "int8"),
    ({"float16", "bfloat16"}, "fp16"),
)
_LARGE = 256
# What changes a value's type or shape and nothing else.
_CASTS = {"Convert", "Unsqueeze", "Reshape", "Squeeze"}


def adopt(file: Path, folder: Path, config: Lfm2Config) -> Adopted:
    """Put the IR into a bundle's folder; see `importing.adopted.Adopt`."""
    weights = file.with_suffix(".bin")
    if not weights.is_file():
        raise SourceError(f"{file} has no {weights.name} beside it: download that file, too")
    graph = read_ir(file)
    inputs = {value.name for value in graph.inputs}
    _check_inputs(inputs, file)
    _check_states(graph.names_of_states, config, file)
    place_file(file, folder / GRAPH)
    place_file(weights, folder / WEIGHTS)
    made_with = _read_versions(file)
    tool = "optimum-intel" if "optimum-intel" in made_with else ""
    traits = {
        POSITION_IDS: "position_ids" in inputs,
        ONE_ROW: True,
        NO_PROPOSALS: True,
        LEFT_PADDING: bool(find_left_padding_fault(graph)),
    }
    return Adopted(
        GRAPH,
        "openvino-cpu",
        "openvino",
        f"{tool} {made_with.get(tool, '')}".strip(),
        made_with,
        _find_precision(graph),
        "float32",
        tuple(trait for trait, has in traits.items() if has),
    )


def find_left_padding_fault(graph: Graph) -> str:
    """Name of a node that masks a conv with the mask's first columns; "" where there is none.

    Of a mask [B, T] over all tokens, `mask[:, :s]` are the oldest s, and the tokens of this call
    are the newest. Where a prompt is padded on the left and read in chunks, as OpenVINO does on
    NPUs, real tokens are then masked by padding's zeros. `mask[:, -s:]` begins at a computed place.
    Source: optimum-intel 2.2.0; measured through NPUW on the CPU, OpenVINO 2026.4.1.
    """
    users = _index_users(graph)
    for node in graph.nodes:
        if node.op != "Slice" or len(node.inputs) < 3 or not _comes_from_mask(graph, node):
            continue
        start, stop = node.inputs[1], node.inputs[2]
        from_zero = start is not None and start.content in ((0,), (0, 0))
        until_here = stop is not None and not stop.constant
        if from_zero and until_here and _is_multiplied(node, users):
            return node.name
    return ""


def _index_users(graph: Graph) -> Mapping[int, list[Node]]:
    users: dict[int, list[Node]] = {}
    for node in graph.nodes:
        for value in node.inputs:
            users.setdefault(id(value), []).append(node)
    return users


def _comes_from_mask(graph: Graph, node: Node) -> bool:
    makers = {id(value): maker for maker in graph.nodes for value in maker.outputs}
    value = node.inputs[0]
    while value is not None and not value.is_input:
        maker = makers.get(id(value))
        if maker is None or maker.op not in _CASTS:
            return False
        value = maker.inputs[0]
    return value is not None and value.name == "attention_mask"


def _is_multiplied(node: Node, users: Mapping[int, list[Node]]) -> bool:
    """Whether what a node gives scales something, and is not a mask of attention."""
    following = [user for value in node.outputs for user in users.get(id(value), [])]
    return any(
        user.op == "Multiply" or (user.op in _CASTS and _is_multiplied(user, users))
        for user in following
    )


def _check_inputs(inputs: set[str], file: Path) -> None:
    if "inputs_embeds" in inputs:
        raise SourceError(
            f"{file} takes inputs_embeds, so it is the decoder of a vision or audio model "
            "(LFM2-VL, LFM2-Audio): give a text model's IR"
        )
    missing = [name for name in _NEEDED if name not in inputs]
    unknown = sorted(inputs - _INPUTS)
    if missing or unknown:
        seen = f"takes no {missing[0]}" if missing else f"takes an input {unknown[0]!r}"
        raise SourceError(
            f"{file} {seen}: expected a stateful IR of `optimum-cli export openvino --task "
            "text-generation-with-past`, with inputs input_ids, attention_mask and beam_idx"
        )


def _check_states(names: tuple[str, ...], config: Lfm2Config, file: Path) -> None:
    matches = [_VARIABLE.match(name) for name in names]
    found = [match.group(1) for match in matches if match is not None]
    if not names or len(found) != len(names):
        seen = "has no states" if not names else "has states of other names"
        raise SourceError(
            f"{file} {seen}: expected variables cache_params.past.conv.N, .key.N and .value.N, as "
            "in a stateful IR of optimum-intel"
        )
    kinds: list[str] = [spec.kind for spec in list_states(config)]
    for kind in _KINDS:
        if found.count(kind) != kinds.count(kind):
            raise SourceError(
                f"{file} has {found.count(kind)} {kind} states and config.json asks for "
                f"{kinds.count(kind)}: take the config of the very model that was exported"
            )


def _find_precision(graph: Graph) -> str:
    types = set(_list_weight_types(graph))
    return next((name for of, name in _PRECISIONS if types & of), "fp32")


def _list_weight_types(graph: Graph) -> Iterator[str]:
    for value in graph.constants:
        shape = value.shape or ()
        size = 1
        for dim in shape:
            size *= dim if isinstance(dim, int) else 1
        if len(shape) >= 2 and size >= _LARGE:
            yield value.type or ""


def _read_versions(file: Path) -> dict[str, str]:
    """What an IR says of who made it."""
    info = ElementTree.parse(file).getroot().find("rt_info")
    found: dict[str, str] = {}
    optimum = None if info is None else info.find("optimum")
    for entry in () if optimum is None else optimum:
        found[entry.tag.removesuffix("_version").replace("_", "-")] = entry.get("value", "")
    version = None if info is None else _find_runtime(info)
    return {**found, **({"openvino": version} if version else {})}


def _find_runtime(info: Element) -> str:
    entry = info.find("Runtime_version")
    return "" if entry is None else entry.get("value", "").partition("-")[0]
