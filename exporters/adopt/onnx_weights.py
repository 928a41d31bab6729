"""Where an ONNX graph's weights lie: files beside it, taken over under a bundle's names."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from onnx import GraphProto, ModelProto, TensorProto
from onnx.external_data_helper import (
    convert_model_to_external_data,
    write_external_data_tensors,
)

from lfm2_deploy.errors import SourceError
from lfm2_deploy.importing.adopted import place_file
from lfm2_deploy.manifest import WEIGHTS, is_plain_path


def move_weights(model: ModelProto, file: Path, folder: Path) -> None:
    """Take over the files a graph refers to; one that holds its weights itself gets one.

    Files keep their bytes, and are called `model.onnx.data`, `model.onnx.data_1` and so on.

    Args:
        model: of `file`; its references are changed.
        file: the graph.
        folder: the bundle's.

    Raises:
        SourceError: a file is missing or cut short, or a reference leads elsewhere.
    """
    tensors = list(_list_external(model.graph))
    names = dict.fromkeys(_locate(tensor, file) for tensor in tensors)
    for name in names:
        _require_whole(file.parent / name, [t for t in tensors if _read(t, "location") == name])
    if not names:
        _move_out(model, folder)
        return
    for place, name in enumerate(names):
        own = WEIGHTS if place == 0 else f"{WEIGHTS}_{place}"
        place_file(file.parent / name, folder / own)
        names[name] = own
    for tensor in tensors:
        for entry in tensor.external_data:
            if entry.key == "location":
                entry.value = str(names[entry.value])


def _list_external(graph: GraphProto) -> list[TensorProto]:
    found = [t for t in graph.initializer if t.data_location == TensorProto.EXTERNAL]
    for node in graph.node:
        for attribute in node.attribute:
            if attribute.HasField("g"):
                found += _list_external(attribute.g)
            if attribute.t.data_location == TensorProto.EXTERNAL:
                found.append(attribute.t)
    return found


def _locate(tensor: TensorProto, file: Path) -> str:
    name = _read(tensor, "location")
    if not is_plain_path(name):
        raise SourceError(
            f"{file} refers to weights in {name!r}: expected a file beside it, or in a folder "
            "there; graphs that point elsewhere are not opened"
        )
    if not (file.parent / name).is_file():
        raise SourceError(
            f"{file} refers to weights in {name}, which is not there: download that file, too"
        )
    return name


def _read(tensor: TensorProto, key: str) -> str:
    return next((entry.value for entry in tensor.external_data if entry.key == key), "")


def _require_whole(weights: Path, tensors: Sequence[TensorProto]) -> None:
    """A download that was cut short is told here, in one line; onnxruntime would dump its own."""
    places = ((int(_read(t, "offset") or 0), int(_read(t, "length") or 0)) for t in tensors)
    needed = max(offset + length for offset, length in places)
    size = weights.stat().st_size
    if size < needed:
        raise SourceError(
            f"{weights} is cut short: {size:,} bytes, expected at least {needed:,}; download it "
            "again"
        )


def _move_out(model: ModelProto, folder: Path) -> None:
    """Weights inside the graph into a file, as bundles have it."""
    convert_model_to_external_data(model, location=WEIGHTS, size_threshold=1024)
    write_external_data_tensors(model, str(folder))
    if not (folder / WEIGHTS).exists():  # a graph of nothing but small tensors
        (folder / WEIGHTS).write_bytes(b"")
