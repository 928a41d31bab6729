"""What was found out of a GPU's calls at an earlier load, so that it is not tried at each.

Recordings and long prompts come out wrong on some devices (`gpu_capture`, `gpu_prompts`), and
trying that takes some 45 calls. It holds for a bundle, a device and its driver.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from lfm2_deploy.remember import recall, remember
from runtimes.gpu_capture import SWITCH

if TYPE_CHECKING:
    from runtimes.gpu_model import GpuRuntime

_KIND = "gpu-calls"


def settle(runtime: GpuRuntime, key: Mapping[str, str], find_out: Callable[[], None]) -> None:
    """Let a runtime make calls as was found right, or find it out now.

    Args:
        runtime: just loaded; its way of capturing and of cutting prompts is set.
        key: bundle, device and driver.
        find_out: sets them by trying.
    """
    key = {**key, "captures": str(runtime.captures), "switch": os.environ.get(SWITCH, "")}
    found = recall(_KIND, key)
    if found is not None and _is_whole(found):
        runtime.captures, runtime.prompt_chunk = found["captures"], found["prompt_chunk"]
        notes = (*runtime.info.notes, *found["notes"])
        runtime.info = replace(runtime.info, notes=notes)
        return
    before = len(runtime.info.notes)
    find_out()
    notes = runtime.info.notes[before:]
    chunk = runtime.prompt_chunk
    remember(_KIND, key, {"captures": runtime.captures, "prompt_chunk": chunk, "notes": notes})


def _is_whole(found: Mapping[str, Any]) -> bool:
    notes, chunk = found.get("notes"), found.get("prompt_chunk", 0)
    return (
        type(found.get("captures")) is bool
        and (chunk is None or (type(chunk) is int and chunk > 0))
        and isinstance(notes, list)
        and all(isinstance(note, str) and note.isprintable() for note in notes)
    )
