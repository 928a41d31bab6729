"""Weights from a folder, the Hub or a seed, read one tensor at a time.

Names are imported when first used: who asks only for the shapes of known models, as shell
completion does at every press of Tab, need not wait for numpy.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from lfm2_deploy.checkpoint.source import (
        describe_model,
        is_gguf,
        is_hub_id,
        open_checkpoint,
    )

__all__ = ["describe_model", "is_gguf", "is_hub_id", "open_checkpoint"]


def __getattr__(name: str) -> Any:
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from lfm2_deploy.checkpoint import source

    return getattr(source, name)
