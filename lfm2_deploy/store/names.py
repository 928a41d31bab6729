"""Names of bundles and of models in the store."""

from __future__ import annotations

import re
from pathlib import Path

from lfm2_deploy.errors import StoreError

# No name can leave the store's folder, hide in it, or be an option of a command.
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,99}")
# Windows keeps these for devices, whatever follows a dot.
_DEVICES = re.compile(r"(con|prn|aux|nul|com\d|lpt\d)(\..*)?", re.IGNORECASE)
# What makes a name awkward to type, such as the "@" of a synthetic model's seed.
_AWKWARD = re.compile(r"[^\w.-]+")
_LONGEST = 100


def is_name(text: str) -> bool:
    """Whether a model of the store may be called so, on every system."""
    return (
        _NAME.fullmatch(text) is not None
        and not text.endswith(".")
        and _DEVICES.fullmatch(text) is None
    )


def check_name(text: str) -> str:
    """The name.

    Raises:
        StoreError: no model may be called so.
    """
    if not is_name(text):
        raise StoreError(
            f"{text!r} is no name for a model: write letters, digits, '.', '_' and '-', at most "
            f"{_LONGEST}, the first one a letter or digit"
        )
    return text


def name_bundle(
    model: str,
    adapter: Path | None,
    target: str,
    precision: str,
    part: str | None = None,
    inputs_embeds: bool = False,
) -> str:
    """What a bundle's folder is called by default.

    `LiquidAI/LFM2-350M` -> `LFM2-350M-cpu-int4`, and `x/LFM2-350M-F16.gguf` ->
    `LFM2-350M-F16-cpu-int4`.
    """
    folder = Path(model).expanduser()
    base = folder.resolve().name if folder.is_dir() else model.rpartition("/")[2]
    base = base.removeprefix("synthetic:")
    if base.lower().endswith(".gguf"):
        base = base[: -len(".gguf")]
    embeds = "embeds" if inputs_embeds else ""
    parts = [base, adapter.resolve().name if adapter else "", part, embeds, target, precision]
    return _AWKWARD.sub("-", "-".join(part for part in parts if part))


def make_name(text: str) -> str:
    """The nearest name that a model of the store may have."""
    plain = re.sub(r"[^A-Za-z0-9._-]+", "-", text).lstrip("._-")[:_LONGEST].rstrip("._-")
    return plain if is_name(plain) else f"model-{plain}"[:_LONGEST].rstrip("._-")
