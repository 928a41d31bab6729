"""How Liquid AI recommends sampling from each of its models.

The generation_config.json of most LFM2 checkpoints holds token ids alone; the settings
stand on the model cards (read in November 2026). An export writes them into the bundle,
where the checkpoint itself says nothing.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

_WIDE = {"temperature": 0.3, "min_p": 0.15}
_NARROW = {"temperature": 0.1, "top_k": 50}
_LARGE_VOCABULARY = {"temperature": 0.2, "top_k": 80}

_BY_MODEL: Mapping[str, Mapping[str, float]] = {
    "LFM2-350M": _WIDE,
    "LFM2-700M": _WIDE,
    "LFM2-1.2B": _WIDE,
    "LFM2-2.6B": _WIDE,
    "LFM2-8B-A1B": _WIDE,
    "LFM2-24B-A2B": _NARROW,
    "LFM2.5-230M": _NARROW,
    "LFM2.5-350M": _NARROW,
    "LFM2.5-1.2B-Instruct": _NARROW,
    "LFM2.5-1.2B-Thinking": _NARROW,
    "LFM2.5-2.6B": _LARGE_VOCABULARY,
    "LFM2.5-8B-A1B": _LARGE_VOCABULARY,
}


def list_names() -> list[str]:
    """Liquid AI's text models that are known here, as the last part of their Hub ids."""
    return list(_BY_MODEL)


def complete_generation_config(model: str, found: Mapping[str, Any]) -> dict[str, Any]:
    """Add the model card's settings to a generation_config.json without any.

    Args:
        model: folder name or Hub id; its last part is looked up, of "owner/name-GGUF/file.gguf"
            the name.
        found: the checkpoint's own object, empty where it has none.

    Returns:
        `found` as it is where it chooses a way of sampling, or where the model has no
        recommendation; else `found` with the recommended settings added.
    """
    place, _, last = model.rpartition("/")
    if last.endswith(".gguf"):
        last = place.rpartition("/")[2].removesuffix("-GGUF")
    settings = _BY_MODEL.get(last)
    if settings is None or "temperature" in found or "do_sample" in found:
        return dict(found)
    return {"do_sample": True, **settings, "repetition_penalty": 1.05, **found}
