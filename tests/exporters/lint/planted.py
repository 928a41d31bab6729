"""For every rule a graph with the fault planted, and its twin without.

A function in these modules takes whether to plant the fault and returns the graph. The tests go
through all rules of all targets, so one without an entry fails.
"""

from __future__ import annotations

from . import planted_directml, planted_openvino, planted_providers
from .plants import PLANTED

__all__ = ["PLANTED", "planted_directml", "planted_openvino", "planted_providers"]
