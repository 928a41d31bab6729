"""The programs besides our own that a bundle can be read by, and what each looks for.

The canonical graph is always there: it is what our runtimes and onnxruntime-genai from 0.17 on
read. Every other reader gets a graph of its own over the same weights file.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import onnx_ir as ir

from exporters.quantize.plan import Precision
from exporters.readers.older_operators import drop_accuracy_level, drop_row_lengths
from lfm2_deploy.config import Lfm2Config
from lfm2_deploy.errors import ExportError, UnknownOptionError
from lfm2_deploy.manifest import GRAPH, WEIGHTS
from lfm2_deploy.states import StateSpec
from lfm2_deploy.words import suggest

GENAI, GENAI_LEGACY, TRANSFORMERSJS = "genai", "genai-legacy", "transformersjs"
# What is written where nobody asks: the canonical graph.
DEFAULT_READERS = (GENAI,)


@dataclass(frozen=True, slots=True)
class StateNames:
    """What a reader calls a state, and how wide it takes one.

    Args:
        input: of the graph input that brings the state in.
        output: of the graph output that takes it out.
        width: columns of a conv state; None where it is the canonical L-1, and for keys and
            values.
    """

    input: str
    output: str
    width: int | None = None


@dataclass(frozen=True, slots=True)
class Reader:
    """One program that reads a bundle.

    Args:
        name: what users type after `--io`.
        graph: file of its graph, by precision; `GRAPH` where it reads the canonical one.
        name_state: what it calls a state.
        weights: the file its graph must read weights from, by precision; None for any.
        genai_config: the graph that genai_config.json names is this reader's.
        edits: what its graph must do without, after it is renamed.
    """

    name: str
    graph: Callable[[Precision], str]
    name_state: Callable[[StateSpec, Lfm2Config], StateNames]
    weights: Callable[[Precision], str] | None = None
    genai_config: bool = False
    edits: tuple[Callable[[ir.Graph], None], ...] = ()


def _keep_name(spec: StateSpec, config: Lfm2Config) -> StateNames:
    return StateNames(spec.input, spec.output)


def _name_flat(spec: StateSpec, config: Lfm2Config) -> StateNames:
    """Keys and values as they are; conv states L wide under names of their own.

    Source: transformers.js 4.3.2, src/models/session.js; onnxruntime-genai 0.14, lfm2 models.
    """
    if spec.kind != "conv":
        return _keep_name(spec, config)
    past, present = f"past_conv.{spec.layer}", f"present_conv.{spec.layer}"
    return StateNames(past, present, config.conv_L_cache)


# transformers.js looks for model{suffix}.onnx by `dtype`; "q8" is what it calls 8 bits.
_SUFFIXES: Mapping[Precision, str] = {
    "fp32": "",
    "fp16": "_fp16",
    "int8": "_quantized",
    "int4": "_q4",
}


def _name_for_js(precision: Precision) -> str:
    return f"onnx/model{_SUFFIXES[precision]}.onnx"


READERS: Mapping[str, Reader] = {
    reader.name: reader
    for reader in (
        Reader(GENAI, lambda precision: GRAPH, _keep_name, genai_config=True),
        Reader(
            TRANSFORMERSJS,
            _name_for_js,
            _name_flat,
            weights=lambda precision: f"{_name_for_js(precision)}_data",
            edits=(drop_row_lengths, drop_accuracy_level),
        ),
        Reader(
            GENAI_LEGACY,
            lambda precision: "model_genai_legacy.onnx",
            _name_flat,
            genai_config=True,
            edits=(drop_row_lengths,),
        ),
    )
}


def choose_readers(names: Sequence[str], target: str, offered: Sequence[str]) -> tuple[Reader, ...]:
    """The readers that were asked for.

    Args:
        names: as users type them; empty for the target's usual ones.
        target: its name, for errors.
        offered: those that can read its graphs.

    Raises:
        ExportError: there is no such reader, it cannot read this target's graphs, or two want one
            file.
    """
    for name in names:
        if name not in READERS:
            raise UnknownOptionError(
                f"--io {name} is not known: expected one or several of {', '.join(READERS)}"
                f"{suggest(name, READERS)}"
            )
        if name not in offered:
            raise ExportError(
                f"--io {name}: graphs of target {target} take inputs from their own host that "
                "no other program gives; choose --target cpu, or leave --io out"
            )
    if {GENAI, GENAI_LEGACY} <= set(names):
        raise ExportError(
            f"--io {GENAI} and {GENAI_LEGACY} both want genai_config.json: choose one, "
            f"{GENAI_LEGACY} only for onnxruntime-genai before 0.17"
        )
    chosen = dict.fromkeys(names)
    if GENAI in offered and GENAI_LEGACY not in chosen:
        chosen = {GENAI: None, **chosen}
    return tuple(READERS[name] for name in chosen)


def choose_weights(readers: Sequence[Reader], precision: Precision) -> str:
    """The weights file of a bundle that all these readers find."""
    wanted = [reader.weights(precision) for reader in readers if reader.weights is not None]
    return wanted[0] if wanted else WEIGHTS
