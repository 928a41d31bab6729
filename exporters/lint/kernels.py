"""Tables of kernels, and which of them a node would get.

ONNX Runtime takes a kernel whose operator and domain are the node's, whose range of versions
holds the version the node's definition came with (a kernel without an end takes exactly its own:
`VerifyVersion` in core/framework/kernel_registry.cc), and whose types hold the node's.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from importlib import resources
from typing import Any

import onnx

from exporters.lint.graph import Node, Value

ALL = "all"
# Kernels that DirectML's provider registers beside its table, and runs on the CPU: at the end of
# OperatorRegistration.cpp, onnxruntime 1.30.0.
_BESIDE = {
    "directml": {
        **dict.fromkeys(("SequenceAt", "SequenceConstruct", "SequenceEmpty"), (11,)),
        **dict.fromkeys(("SequenceLength", "SequenceErase", "SequenceInsert"), (11,)),
        **dict.fromkeys(("OptionalHasElement", "OptionalGetElement"), (15, 18)),
        "If": (7, 11, 13, 16, 19),
        "DFT": (17, 20),
        "STFT": (17,),
        "GridSample": (16,),
    }
}
_ANY_NUMBER = "..."


@dataclass(frozen=True, slots=True)
class OperatorSchema:
    """How the values of one of ONNX Runtime's own operators share types.

    Args:
        since: its version.
        inputs: type parameters in order; the last may end in "..." for any number.
        outputs: likewise.
        types: parameter -> what it may be.
    """

    since: int
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    types: Mapping[str, tuple[str, ...]]

    def parameter(self, index: int, of_output: bool = False) -> str:
        """Type parameter of an input or output; empty where there is none."""
        names = self.outputs if of_output else self.inputs
        if index < len(names):
            return names[index].removesuffix(_ANY_NUMBER)
        last = names[-1] if names else ""
        return last.removesuffix(_ANY_NUMBER) if last.endswith(_ANY_NUMBER) else ""

    def only_type(self, parameter: str) -> str | None:
        """The type of a parameter that allows one alone."""
        allowed = self.types.get(parameter, ())
        return allowed[0] if len(allowed) == 1 else None


@dataclass(frozen=True, slots=True)
class Kernel:
    """One kernel of a provider.

    Args:
        since: first version it takes.
        until: last one.
        types: type parameter -> what it takes; None for anything.
        cpu_inputs: inputs it reads on the CPU, when it is made.
        in_graphs: whether DirectML can compile it into one graph with others.
    """

    since: int
    until: int
    types: Mapping[str, tuple[str, ...] | None]
    cpu_inputs: tuple[int, ...] = ()
    in_graphs: bool = True

    def takes(self, since: int) -> bool:
        """Whether it takes this version of the operator."""
        return self.since <= since <= self.until


@dataclass(frozen=True, slots=True)
class KernelTable:
    """All kernels of a provider, by (domain, operator)."""

    source: str
    kernels: Mapping[tuple[str, str], tuple[Kernel, ...]]

    def find(self, node: Node) -> tuple[Kernel, ...]:
        """Kernels of a node's operator, of any version."""
        return self.kernels.get((node.domain, node.op), ())

    def find_version(self, node: Node) -> tuple[Kernel, ...]:
        """Kernels for a node, as far as its version goes."""
        return tuple(k for k in self.find(node) if node.since and k.takes(node.since))

    def choose(self, node: Node) -> Kernel | None:
        """The kernel a node gets; what is not known of its types is taken to fit."""
        fitting = (k for k in self.find_version(node) if find_misfit(node, k) is None)
        return next(fitting, None)


def is_inlined(node: Node) -> bool:
    """Whether ONNX Runtime takes a node apart into the operators that ONNX defines it by.

    It does so with those that no provider has a kernel for; one that the CPU has a kernel for
    goes there instead.
    """
    return node.is_function and load_table("cpu").choose(node) is None


def find_misfit(node: Node, kernel: Kernel) -> tuple[str, str] | None:
    """What of a node's types a kernel does not take.

    Returns:
        What is seen and what is taken, in words; None if nothing is known to be wrong.
    """
    for parameter, taken in kernel.types.items():
        for value in bind(node).get(parameter, ()):
            if taken is not None and value.type is not None and value.type not in taken:
                return f"{parameter} is {value.type}", " or ".join(taken)
    return None


def bind(node: Node) -> Mapping[str, list[Value]]:
    """A node's values by type parameter, and inputs and outputs by their own names."""
    found: dict[str, list[Value]] = {}
    for names, values in zip(_list_parameters(node), (node.inputs, node.outputs), strict=True):
        for index, value in enumerate(values):
            many = names and names[-1].endswith(_ANY_NUMBER)
            name = names[index] if index < len(names) else names[-1] if many else ""
            if value is not None and name:
                found.setdefault(name.removesuffix(_ANY_NUMBER), []).append(value)
    return found


def _list_parameters(node: Node) -> tuple[Sequence[str], Sequence[str]]:
    own = load_schemas().get((node.domain, node.op))
    if own is not None:
        return own.inputs, own.outputs
    return _list_of_onnx(node.op, node.since or 1, node.domain)


@cache
def _list_of_onnx(op: str, since: int, domain: str) -> tuple[tuple[str, ...], tuple[str, ...]]:
    try:
        schema = onnx.defs.get_schema(op, since, domain)
    except onnx.defs.SchemaError:
        return (), ()
    many = onnx.defs.OpSchema.FormalParameterOption.Variadic
    inputs, outputs = (
        tuple(f"{one.type_str}{_ANY_NUMBER if one.option == many else ''}" for one in parameters)
        for parameters in (schema.inputs, schema.outputs)
    )
    return inputs, outputs


@cache
def load_table(name: str) -> KernelTable:
    """A provider's table in tables/: "directml", "webgpu" or "cpu"."""
    raw = _read(name)
    kernels: dict[tuple[str, str], list[Kernel]] = {}
    for row in raw["operators"]:
        types = {key: _split(words) for key, words in row["types"].items()}
        until = row.get("until", row["since"])
        cpu_inputs = tuple(row.get("cpu_inputs", ()))
        kernel = Kernel(row["since"], until, types, cpu_inputs, row.get("in_graphs", True))
        kernels.setdefault((row["domain"], row["op"]), []).append(kernel)
    for op, versions in _BESIDE.get(name, {}).items():
        kernels.setdefault(("", op), []).extend(Kernel(one, one, {}) for one in versions)
    source = raw.get("source") or f"onnxruntime {raw['onnxruntime']}, {raw['wheel']}"
    return KernelTable(source, {key: tuple(found) for key, found in kernels.items()})


@cache
def load_schemas() -> Mapping[tuple[str, str], OperatorSchema]:
    """ONNX Runtime's own operators, by (domain, operator)."""
    return {
        (row["domain"], row["op"]): OperatorSchema(
            row["since"],
            tuple(row["inputs"]),
            tuple(row["outputs"]),
            {key: tuple(words.split()) for key, words in row["types"].items()},
        )
        for row in _read("microsoft")["operators"]
    }


@cache
def load_imported() -> Mapping[str, frozenset[str]]:
    """Operators that OpenVINO's ONNX import knows, by domain."""
    return {domain: frozenset(names) for domain, names in _read("openvino")["imported"].items()}


@cache
def load_built() -> frozenset[str]:
    """Operators that the QNN provider has a builder for."""
    return frozenset(_read("qnn")["built"])


def _split(words: str) -> tuple[str, ...] | None:
    return None if words == ALL else tuple(words.split())


def _read(name: str) -> dict[str, Any]:
    text = (resources.files("exporters.lint") / "tables" / f"{name}.json").read_text("utf-8")
    found: dict[str, Any] = json.loads(text)
    return found
