"""What a manifest says of a graph that somebody else's exporter made, and what it cannot do.

Enters: the `imported` object of a manifest. Leaves: a checked record, and words for its traits.
Knows no format and no runtime.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

GROWS, POSITION_IDS, ALL_LOGITS = "grows", "position_ids", "all_logits"
ONE_ROW, NO_PROPOSALS, ONE_TOKEN = "one_row", "no_proposals", "one_token"
SLOW_EXPERTS, LEFT_PADDING = "slow_experts", "left_padding"

# What tensors of an imported GGUF file say of how they are stored.
KEPT_OF_GGUF = "its numbers are kept"

# A trait -> what it means to whoever runs the bundle.
TRAITS: Mapping[str, str] = {
    GROWS: "keys and values grow: the graph joins them, so each token copies all of them",
    POSITION_IDS: "takes position_ids",
    ALL_LOGITS: "gives logits of every position, of prompts too",
    ONE_ROW: "rows cannot be ragged: each runs by itself, and the weights are read for each",
    NO_PROPOSALS: "tokens once appended cannot be taken back, so nothing is looked ahead",
    ONE_TOKEN: "takes several tokens at the beginning only: later ones are appended one by one",
    SLOW_EXPERTS: "its QMoE has no accuracy_level, so the CPU computes experts in float32, about "
    "five times slower than with 8-bit activations; onnxruntime's own switch for that is the "
    "environment variable ORT_QMOE_CPU_QNBIT_GEMM=int8",
    LEFT_PADDING: "padding on the left gets into conv states when a prompt is read in chunks, "
    "as NPUs do (conv mask is mask[:, :s])",
}


@dataclass(frozen=True, slots=True)
class ImportedRecord:
    """Where an imported graph comes from.

    Args:
        kind: "onnx" or "openvino".
        tool: what made it, with its version where the graph tells; "" where it does not.
        file: its file at the source, such as "onnx/model_q4.onnx".
        traits: keys of `TRAITS`.
        repository: the Hub id where the file lies; "" for a folder.
        revision: the commit there.
    """

    kind: str
    tool: str
    file: str
    traits: tuple[str, ...]
    repository: str = ""
    revision: str = ""

    def describe(self) -> str:
        """For people, in one line."""
        made = f", made by {self.tool}" if self.tool else ", by a tool that is not named in it"
        where = f" of {self.repository}" if self.repository else ""
        return f"{self.kind} graph {self.file}{where}{made}"


def parse_imported(raw: Mapping[str, Any]) -> ImportedRecord:
    """The record of a manifest.

    Raises:
        ValueError, TypeError, KeyError: it has another form, or a trait that is not known.
    """
    traits = raw["traits"]
    texts = {key: raw[key] for key in ("kind", "tool", "file")}
    texts |= {key: raw.get(key, "") for key in ("repository", "revision")}
    if not isinstance(traits, list) or not all(isinstance(t, str) for t in texts.values()):
        raise ValueError("imported has another form")
    unknown = [trait for trait in traits if trait not in TRAITS]
    if unknown:
        raise ValueError(f"imported has the unknown trait {unknown[0]!r}")
    return ImportedRecord(**texts, traits=tuple(traits))
