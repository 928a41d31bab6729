"""Compress an OpenVINO IR with nncf; runs in an environment of its own, which has nncf.

    python -m venv /tmp/nncf && /tmp/nncf/bin/pip install nncf openvino
    /tmp/nncf/bin/python benchmarks/nncf_compress.py IN.xml OUT.xml [ROWS.json] key=value ...

Words are nncf.compress_weights' own: mode=int4_sym group_size=-1 all_layers=true ...; besides,
`keep_router=true` leaves out the matrices that choose experts. ROWS.json holds rows of token
ids, for the modes that look at data.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import nncf
import numpy as np
import openvino as ov
from openvino._offline_transformations import apply_moc_transformations


def main() -> None:
    source, out, *words = sys.argv[1:]
    options: dict[str, Any] = {}
    for word in words:
        if "=" in word:
            key, value = word.split("=", 1)
            options[key] = json.loads(value) if value[0] not in "abcdeghijklmopqrsuvwxyz" else value
    model = ov.Core().read_model(source)
    # nncf sees no weights behind a Transpose, so these are made the products' own.
    apply_moc_transformations(model, False)
    rows = next((json.loads(Path(word).read_text()) for word in words if "=" not in word), None)
    ov.save_model(compress(model, options, rows), out, compress_to_fp16=False)


def compress(model: ov.Model, options: dict[str, Any], rows: list[list[int]] | None) -> ov.Model:
    """The model with 4 or 8 bits a weight."""
    mode = nncf.CompressWeightsMode(options.pop("mode"))
    if options.pop("keep_router", False):
        routers = find_routers(model)
        print(f"kept: {', '.join(routers)}")
        options["ignored_scope"] = nncf.IgnoredScope(names=routers)
    if rows is not None:
        options["dataset"] = nncf.Dataset([feed(row) for row in rows])
    return nncf.compress_weights(model, mode=mode, **options)


def find_routers(model: ov.Model) -> list[str]:
    """The products that TopK depends on through element-wise operators alone."""
    found = []
    for node in model.get_ordered_ops():
        if node.get_type_name() != "TopK":
            continue
        while node.get_type_name() != "MatMul":
            node = node.input_value(0).get_node()
        found.append(node.get_friendly_name())
    return found


def feed(row: list[int]) -> dict[str, np.ndarray]:
    """One row from an empty state."""
    return {
        "input_ids": np.array([row], np.int64),
        "attention_mask": np.ones((1, len(row)), np.int64),
        "beam_idx": np.zeros(1, np.int32),
    }


if __name__ == "__main__":
    main()
