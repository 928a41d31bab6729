"""The ways to round weights, by name."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

from exporters.quantize.plan import Rounding
from lfm2_deploy.errors import UnknownOptionError
from lfm2_deploy.words import suggest

if TYPE_CHECKING:
    from torch import Tensor

    from exporters.quantize.gptq import Rounded
    from exporters.quantize.grid import Grid

Rounder = Callable[["Tensor", "Tensor", "Grid"], "Rounded"]


@dataclass(frozen=True, slots=True)
class Method:
    """A way to round weights.

    Args:
        name: what users type after `--quantize`.
        rounding: how encoders choose levels.
        scales: whether channels are scaled beforehand.
        feeds_on: whether columns make up for what others lost.
    """

    name: str
    rounding: Rounding
    scales: bool = False
    feeds_on: bool = False

    @property
    def calibrates(self) -> bool:
        """Whether it needs tokens to calibrate with."""
        return self.rounding == "recover"


METHODS: Mapping[str, Method] = {
    method.name: method
    for method in (
        Method("rtn", "nearest"),
        Method("search", "search"),
        Method("awq", "recover", scales=True),
        Method("gptq", "recover", feeds_on=True),
        Method("awq+gptq", "recover", scales=True, feeds_on=True),
    )
}
DEFAULT = "search"


def find_method(name: str) -> Method:
    """The method of that name.

    Raises:
        ExportError: there is none.
    """
    if name not in METHODS:
        raise UnknownOptionError(
            f"there is no --quantize {name}: expected one of {', '.join(METHODS)}"
            f"{suggest(name, METHODS)}"
        )
    return METHODS[name]
