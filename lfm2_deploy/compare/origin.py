"""A bundle -> the checkpoint it was made from, as far as its manifest tells."""

from __future__ import annotations

import json
from hashlib import sha256
from pathlib import Path

from lfm2_deploy.bundle import Bundle
from lfm2_deploy.checkpoint import open_checkpoint
from lfm2_deploy.contracts import Checkpoint, Progress
from lfm2_deploy.demo import DEMO_MODEL
from lfm2_deploy.errors import SourceError


def open_reference(
    bundle: Bundle, against: str | None, adapter: Path | None, progress: Progress
) -> Checkpoint:
    """The weights that a bundle should be compared with.

    Args:
        bundle: its manifest says where it came from.
        against: the model to take instead, as `export` takes it.
        adapter: the adapter that was merged into the bundle.
        progress: told of downloads.

    Raises:
        SourceError: the manifest does not say enough.
        CheckpointError, ConfigError: the model cannot be opened.
    """
    merged = bundle.manifest.origin.adapter
    if merged and adapter is None:
        raise SourceError(
            f"{bundle.path} holds the adapter {merged!r}, whose folder was not recorded: "
            "pass it with --adapter"
        )
    part = bundle.manifest.origin.part or None
    if against is not None:
        return open_checkpoint(against, adapter=adapter, part=part, progress=progress)
    model, revision = locate_origin(bundle)
    return open_checkpoint(model, revision=revision, adapter=adapter, part=part, progress=progress)


def locate_origin(bundle: Bundle) -> tuple[str, str | None]:
    """Model and revision as `open_checkpoint` takes them.

    Raises:
        SourceError: it was a folder or file of the user's, whose place is not recorded.
    """
    origin = bundle.manifest.origin
    if origin.kind == "hub":
        return origin.name, origin.revision
    if origin.kind == "synthetic":
        return f"synthetic:{origin.name}@{origin.revision}", None
    if is_of_demo_model(bundle):
        return str(DEMO_MODEL), None
    kind = "file" if origin.kind == "file" else "folder"
    raise SourceError(
        f"{bundle.path} was made from a {kind} named {origin.name!r}, whose place was not "
        "recorded: pass it to verify with --against, to compare with --reference "
        f"torch:{kind.upper()}"
    )


def is_of_demo_model(bundle: Bundle) -> bool:
    """Whether a bundle was made from the model that comes with this package."""
    tokenizer = DEMO_MODEL / "tokenizer.json"
    recorded = bundle.manifest.files.get(tokenizer.name)
    return (
        bundle.manifest.origin.name == DEMO_MODEL.name
        and bundle.manifest.config == json.loads((DEMO_MODEL / "config.json").read_text("utf-8"))
        and recorded is not None
        and recorded.sha256 == sha256(tokenizer.read_bytes()).hexdigest()
    )
