"""List the kernels of an installed ONNX Runtime provider, as the provider itself tells them.

    python scripts/list_kernels.py cpu --out exporters/lint/tables/cpu.json
    python scripts/list_kernels.py webgpu --out exporters/lint/tables/webgpu.json
    python scripts/list_kernels.py schemas --out exporters/lint/tables/microsoft.json

"schemas" lists Microsoft's operators, which package onnx does not know. "cpu" asks the installed
onnxruntime; "webgpu" the plugin onnxruntime-ep-webgpu beside it, which needs a Vulkan device: a
software one will do (ORT_WEBGPU_EP_ALLOW_SOFTWARE_ADAPTER=1).
"""

from __future__ import annotations

import argparse
import json
import re
import sys
from collections.abc import Callable, Iterable, Mapping
from functools import partial
from importlib import metadata
from pathlib import Path
from typing import Any

DOMAINS = ("", "com.microsoft")
OPEN_ENDED = 2**31 - 1
_TENSOR = re.compile(r"tensor\((\w+)\)")
_NAMES = {"float": "float32", "double": "float64"}


def list_cpu() -> tuple[list[Any], str]:
    """Kernels of the CPU provider, and where they come from."""
    from onnxruntime.capi import onnxruntime_pybind11_state as state

    kernels = [k for k in state.get_all_opkernel_def() if k.provider == "CPUExecutionProvider"]
    return kernels, f"onnxruntime {metadata.version('onnxruntime')}"


def list_webgpu() -> tuple[list[Any], str]:
    """Kernels of the WebGPU plugin, and where they come from."""
    import onnxruntime
    import onnxruntime_ep_webgpu as plugin
    from onnxruntime.capi import onnxruntime_pybind11_state as state

    onnxruntime.register_execution_provider_library("WebGPU", plugin.get_library_path())
    kernels = state.get_registered_ep_kernel_defs(plugin.get_ep_name())
    version = metadata.version("onnxruntime-ep-webgpu")
    return list(kernels), f"onnxruntime-ep-webgpu {version}, with its default options"


def list_schemas() -> str:
    """Microsoft's operators with the type parameters of their inputs and outputs."""
    import onnx
    from onnxruntime.capi import onnxruntime_pybind11_state as state

    known = {schema.name for schema in onnx.defs.get_all_schemas() if schema.domain == ""}
    lines = []
    for schema in state.get_all_operator_schema():
        own = schema.domain == "" and schema.name not in known
        if schema.domain == DOMAINS[1] or own:
            lines.append(json.dumps(describe_schema(schema)))
    source = f"onnxruntime {metadata.version('onnxruntime')}"
    return write_rows("ONNX Runtime's own operators: type parameters in order.", source, lines)


def describe_schema(schema: Any) -> dict[str, Any]:
    """One operator; "..." after a type parameter means any number of values."""
    types = {one.type_param_str: one.allowed_type_strs for one in schema.type_constraints}
    parameters = (*schema.inputs, *schema.outputs)
    named = {parameter.typeStr for parameter in parameters}
    return {
        "op": schema.name,
        "since": schema.since_version,
        "domain": schema.domain,
        "inputs": list(map(name_parameter, schema.inputs)),
        "outputs": list(map(name_parameter, schema.outputs)),
        "types": {name: shorten(types.get(name, [name])) for name in sorted(named)},
    }


def name_parameter(parameter: Any) -> str:
    variadic = str(parameter.option).endswith("Variadic")
    return f"{parameter.typeStr}{'...' if variadic else ''}"


def describe(kernel: Any) -> dict[str, Any]:
    """One kernel; `until` is left out where it takes no other version than `since`."""
    since, until = kernel.version_range
    row = {"op": kernel.op_name, "since": since, "domain": kernel.domain}
    if until != OPEN_ENDED:
        row["until"] = until
    types = {name: shorten(found) for name, found in sorted(kernel.type_constraints.items())}
    return row | {"types": types}


def shorten(types: Iterable[str]) -> str:
    """["tensor(float)", "seq(tensor(bool))"] -> "float32": sequences and optionals are left out."""
    found = [match[1] for match in map(_TENSOR.fullmatch, types) if match]
    return " ".join(sorted(_NAMES.get(name, name) for name in found))


def list_kernels(find: Callable[[], tuple[list[Any], str]]) -> str:
    """The kernels of a provider, in order of names and versions."""
    kernels, source = find()
    rows = [describe(kernel) for kernel in kernels if kernel.domain in DOMAINS]
    lines = sorted({json.dumps(row) for row in rows if any(row["types"].values())})
    about = "Kernels of an ONNX Runtime provider, by operator, version and types."
    return write_rows(about, source, lines)


def write_rows(about: str, source: str, lines: Iterable[str]) -> str:
    """A table as JSON, a row a line."""
    head = {
        "about": about,
        "made_by": "scripts/list_kernels.py",
        "source": source,
        "derived_from": "microsoft/onnxruntime, MIT License, Copyright (c) Microsoft Corporation",
    }
    body = ",\n".join(f"  {line}" for line in sorted(lines))
    return f'{json.dumps(head, indent=1)[:-2]},\n "operators": [\n{body}\n ]\n}}\n'


LISTS: Mapping[str, Callable[[], str]] = {
    "cpu": partial(list_kernels, list_cpu),
    "webgpu": partial(list_kernels, list_webgpu),
    "schemas": list_schemas,
}


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("what", choices=LISTS)
    parser.add_argument("--out", type=Path, help="write here instead of to stdout")
    arguments = parser.parse_args()
    text = LISTS[arguments.what]()
    if arguments.out:
        arguments.out.write_text(text, encoding="utf-8")
    else:
        sys.stdout.write(text)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
