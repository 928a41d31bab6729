"""Ask OpenVINO which operators its ONNX import has a rule for.

    python scripts/list_openvino_operators.py --out exporters/lint/tables/openvino.json

Every operator is put into a model of one node. One that has a rule fails in another way than one
that has none, or not at all.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

import onnx
from onnx import TensorProto, helper

from lfm2_deploy.telemetry import switch_off_openvino

if TYPE_CHECKING:
    import openvino

OPSET = 21
MICROSOFT = "com.microsoft"
NO_RULE_CODE = 3
NO_RULE = "No conversion rule found"


def list_operators() -> list[tuple[str, str]]:
    """(domain, operator) of what ONNX and ONNX Runtime define."""
    from onnxruntime.capi import onnxruntime_pybind11_state as state

    found = {("", one.name) for one in onnx.defs.get_all_schemas() if one.domain == ""}
    for schema in state.get_all_operator_schema():
        if schema.domain in ("", MICROSOFT):
            found.add((schema.domain, schema.name))
    return sorted(found)


def ask_apart(core: openvino.Core, domain: str, op: str, folder: Path) -> bool:
    """`has_rule`, in a process of its own: some rules crash on a node so bare."""
    child = os.fork()
    if child == 0:
        os._exit(0 if has_rule(core, domain, op, folder) else NO_RULE_CODE)
    _, status = os.waitpid(child, 0)
    return os.waitstatus_to_exitcode(status) != NO_RULE_CODE


def has_rule(core: openvino.Core, domain: str, op: str, folder: Path) -> bool:
    """Whether OpenVINO knows the operator."""
    tensors = [helper.make_tensor_value_info(name, TensorProto.FLOAT, [2, 2]) for name in "ab"]
    node = helper.make_node(op, ["a"], ["b"], domain=domain)
    graph = helper.make_graph([node], "one", tensors[:1], tensors[1:])
    opsets = [helper.make_opsetid("", OPSET), helper.make_opsetid(MICROSOFT, 1)]
    path = folder / "one.onnx"
    onnx.save(helper.make_model(graph, opset_imports=opsets, ir_version=10), path)
    try:
        core.read_model(path)
    except RuntimeError as error:
        return NO_RULE not in str(error)
    return True


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--out", type=Path, help="write here instead of to stdout")
    arguments = parser.parse_args()
    switch_off_openvino()
    import openvino

    core = openvino.Core()
    imported: dict[str, list[str]] = {"": [], MICROSOFT: []}
    with tempfile.TemporaryDirectory() as folder:
        for domain, op in list_operators():
            if ask_apart(core, domain, op, Path(folder)):
                imported[domain].append(op)
    head = {
        "about": "Operators that OpenVINO's ONNX import has a rule for, by domain.",
        "made_by": "scripts/list_openvino_operators.py",
        "source": f"openvino {openvino.get_version()}, opset {OPSET}",
    }
    text = json.dumps({**head, "imported": imported}, indent=1) + "\n"
    if arguments.out:
        arguments.out.write_text(text, encoding="utf-8")
    else:
        sys.stdout.write(text)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
