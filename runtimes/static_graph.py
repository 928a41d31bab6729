"""What host code asks of a compiled graph of fixed shape, whichever backend compiled it.

Arrays by name go in and out. A graph that is called again and again is bound to buffers once;
one that takes any number of rows is called with what there is.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from lfm2_deploy.bundle import Bundle
from lfm2_deploy.config import Lfm2Config
from lfm2_deploy.errors import BundleError
from lfm2_deploy.manifest import Manifest
from lfm2_deploy.static_graphs import (
    COS,
    DECODE,
    EMBED,
    EMBEDS,
    EXPERTS,
    HEAD,
    HISTORY_MASK,
    PREFILL,
    ROW_MASK,
    SIN,
)

Array = NDArray[Any]


@dataclass(frozen=True, slots=True)
class Port:
    """Shape and numpy dtype of an input or output."""

    shape: tuple[int, ...]
    dtype: str

    def allocate(self) -> Array:
        """A buffer of zeros."""
        return np.zeros(self.shape, self.dtype)


@dataclass(frozen=True, slots=True)
class Bound:
    """A graph bound to buffers.

    Args:
        run: reads the inputs' buffers and fills the outputs'.
        inputs, outputs: buffers by name.
    """

    run: Callable[[], None]
    inputs: Mapping[str, Array]
    outputs: Mapping[str, Array]


class StaticGraph(Protocol):
    """A compiled graph whose shapes are fixed."""

    @property
    def inputs(self) -> Mapping[str, Port]:
        """What it takes, by name."""

    def bind(self, shared: Mapping[str, Array]) -> Bound:
        """Bind it, with a state of its own.

        Args:
            shared: buffers for inputs and outputs by name; what is not there gets a new one.
        """


# Arrays by name in, arrays by name out; these are valid until the next call.
Function = Callable[[Mapping[str, Array]], Mapping[str, Array]]


class AnyLength(Protocol):
    """A compiled graph that takes any number of rows."""

    def open(self) -> Function:
        """A caller of it, for one thread."""


# Graphs of one file or of one purpose, by the input each begins with, in their order.
Graphs = Mapping[str, StaticGraph]


def begins(name: str) -> bool:
    """Whether a graph begins with that input; others (states, masks) it shares."""
    return name == EMBEDS or name.startswith("moe.")


def check_graphs(bundle: Bundle, names: set[str], prefill: Graphs, decode: Graphs) -> None:
    """Refuse graphs that are not what the manifest says.

    Args:
        bundle: the opened bundle.
        names: of all graphs found; of experts `experts.N`, N a layer, is enough.
        prefill, decode: those of fixed shape.

    Raises:
        BundleError: one is missing, or of another shape.
    """
    manifest, config = bundle.manifest, bundle.config
    layers = [n for n in range(config.num_hidden_layers) if config.is_moe_layer(n)]
    wanted = {EMBED, HEAD, PREFILL, DECODE, *(f"{EXPERTS}.{n}" for n in layers)}
    if not wanted <= names:
        raise damaged(bundle, f"graph {min(wanted - names)} is missing")
    for name, graphs, steps in ((PREFILL, prefill, manifest.chunk), (DECODE, decode, 1)):
        expected = _list_ports(manifest, config, steps)
        for port_name, port in (item for g in graphs.values() for item in g.inputs.items()):
            if expected.get(port_name, port) != port:
                found = port.shape, port.dtype
                raise damaged(bundle, f"{port_name} of graph {name} is {found}")
        if EMBEDS not in graphs:
            raise damaged(bundle, f"graph {name} takes no {EMBEDS}")


def _list_ports(manifest: Manifest, config: Lfm2Config, steps: int) -> dict[str, Port]:
    """The inputs that every graph of so many tokens takes, if it takes them."""
    length, dtype = manifest.context_length, manifest.states[0].dtype
    rope = Port((1, steps, 1, config.head_dim // 2), dtype)
    return {
        **{s.input: Port(s.concrete_shape(1, length), s.dtype) for s in manifest.states},
        EMBEDS: Port((1, steps, config.hidden_size), dtype),
        COS: rope,
        SIN: rope,
        HISTORY_MASK: Port((1, 1, 1, length), dtype),
        ROW_MASK: Port((1, 1, 1, length + steps), dtype),
    }


def damaged(bundle: Bundle, what: str) -> BundleError:
    """The error for a bundle that is not what its manifest says."""
    return BundleError(
        f"{bundle.path} is damaged, or of another version: {what}; export the model again"
    )
