"""A graph's list of bound weights is not believed: a bundle may come from anywhere."""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import onnx
import pytest

from lfm2_deploy.bundle import Bundle, open_bundle
from lfm2_deploy.errors import BundleError
from lfm2_deploy.gpu_graphs import BOUND_WEIGHTS, parse_bound_weights
from lfm2_deploy.registry import find_runtime

SIZE = 4096


def test_sound_list_is_read() -> None:
    found = parse_bound_weights('{"w": [4, "float16", [2, 3]]}', SIZE)
    assert found["w"] == (4, "float16", (2, 3))
    assert found["w"].end == 16


@pytest.mark.parametrize(
    "text",
    [
        "not JSON", "[]", "null", "[" * 100_000,
        '{"w": null}', '{"w": [0, "float32"]}', '{"w": [0, "float32", 4]}',
        # Bytes of a file taken for pointers crashed the process.
        '{"w": [0, "object", [4]]}', '{"w": [0, "float64", [4]]}',
        '{"w": [-1, "float32", [4]]}', '{"w": [0, "float32", [-4]]}', '{"w": [0, "float32", [0]]}',
        '{"w": [true, "float32", [4]]}', '{"w": [0.5, "float32", [4]]}',
        '{"w": [4095, "float16", [1]]}', '{"w": [0, "float32", [99999999999, 99999999999]]}',
    ],
)  # fmt: skip
def test_unsound_list_is_refused_in_one_line(text: str) -> None:
    with pytest.raises(BundleError, match="export the model again") as caught:
        parse_bound_weights(text, SIZE)
    assert "\n" not in str(caught.value)


def test_list_that_is_not_what_the_graph_takes_is_refused(
    bundle_of: Callable[..., Bundle], tmp_path: Path
) -> None:
    bundle = copy_with(bundle_of("dense", "fp32", "directml"), tmp_path, swap_types)
    with pytest.raises(BundleError, match="is listed as float16"):
        find_runtime("directml")(bundle, device="cpu")


def swap_types(places: dict[str, Any]) -> None:
    name = next(iter(places))
    places[name][1] = "float16"


def copy_with(bundle: Bundle, folder: Path, change: Callable[[dict[str, Any]], None]) -> Bundle:
    """A bundle with another list in its decoding graph, and hashes to match."""
    shutil.copytree(bundle.path, folder / "bundle")
    file = folder / "bundle" / "decode.onnx"
    model = onnx.load(file, load_external_data=False)
    (entry,) = (e for e in model.metadata_props if e.key == BOUND_WEIGHTS)
    places = json.loads(entry.value)
    change(places)
    entry.value = json.dumps(places)
    onnx.save(model, file)
    digest = hashlib.sha256(file.read_bytes()).hexdigest()
    manifest = json.loads((folder / "bundle" / "manifest.json").read_text())
    manifest["files"]["decode.onnx"] |= {"size_bytes": file.stat().st_size, "sha256": digest}
    (folder / "bundle" / "manifest.json").write_text(json.dumps(manifest))
    return open_bundle(folder / "bundle")
