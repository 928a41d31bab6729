"""A model's name -> an open `Checkpoint`.

Enters: what a user typed. Leaves: weights to read by canonical name. Knows the
forms a name can take, and nothing of what is inside a folder, a file, a repository or a seed.
"""

from __future__ import annotations

import os
import re
from pathlib import Path

from lfm2_deploy.checkpoint.adapter import read_adapter
from lfm2_deploy.checkpoint.folder import open_folder
from lfm2_deploy.checkpoint.gguf_checkpoint import SUFFIX, open_gguf
from lfm2_deploy.checkpoint.gguf_hub import is_hub_gguf, open_hub_gguf
from lfm2_deploy.checkpoint.hub import describe_hub, open_hub
from lfm2_deploy.checkpoint.lora import LoraCheckpoint
from lfm2_deploy.checkpoint.synthetic import open_synthetic
from lfm2_deploy.config import Lfm2Config
from lfm2_deploy.contracts import Checkpoint, Origin, Progress, ignore_progress
from lfm2_deploy.errors import SourceError
from lfm2_deploy.model_parts import check_part

_SYNTHETIC = "synthetic:"
_HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[\w.-]+")
_FORMS = (
    "an existing folder, a Hub id 'owner/name' such as LiquidAI/LFM2-1.2B, a GGUF file (of the "
    "Hub: LiquidAI/LFM2-1.2B-GGUF:Q4_0), or 'synthetic:NAME' such as synthetic:tiny-moe"
)


def open_checkpoint(
    model: str,
    *,
    revision: str | None = None,
    adapter: str | Path | None = None,
    part: str | None = None,
    progress: Progress = ignore_progress,
) -> Checkpoint:
    """Open a model's weights; no tensor is read yet.

    Args:
        model: `synthetic:NAME` or `synthetic:NAME@SEED`, an existing folder or *.gguf file, a
            Hub id `owner/name`, or a GGUF file of the Hub, `owner/name:Q4_0` or
            `owner/name/file.gguf`. What exists here wins over a Hub id of the same name.
        revision: branch, tag or commit; of Hub models only.
        adapter: folder of a PEFT LoRA adapter to merge into the weights as they are read.
        part: "text" for the text part of a vision or audio model, which is refused as a whole.
        progress: told when a download starts and ends.

    Returns:
        The checkpoint, with every tensor's name and shape checked.

    Raises:
        SourceError: the place does not exist, cannot be reached, or is of no known form.
        CheckpointError: tensors are missing, unexpected, mis-shaped or truncated.
        ConfigError: config.json is absent or not of a usable LFM2 model.
    """
    # The adapter is small and local: a mistake in it should not wait for a download.
    merged = None if adapter is None else read_adapter(Path(adapter))
    base = _open_base(model, revision, check_part(part), progress)
    return base if merged is None else LoraCheckpoint(base, merged)


def describe_model(
    model: str, revision: str | None = None, part: str | None = None
) -> tuple[Lfm2Config, Origin]:
    """A model's config and origin; of a Hub model, no weights are downloaded.

    A GGUF file of the Hub is one file, and comes whole.

    Args:
        model: as `open_checkpoint` takes it.
        revision: branch, tag or commit; of Hub models only.
        part: as `open_checkpoint` takes it.

    Raises:
        SourceError, CheckpointError, ConfigError: as `open_checkpoint`.
    """
    if is_hub_id(model):
        return describe_hub(model, revision, check_part(part))
    checkpoint = open_checkpoint(model, revision=revision, part=part)
    return checkpoint.config, checkpoint.origin


def is_hub_id(model: str) -> bool:
    """Whether a name means a Hub repository: its form, and no local folder of that name."""
    # "folder/model.gguf" is a file that is not there.
    is_form = has_hub_form(model) and not model.lower().endswith(SUFFIX)
    return is_form and not Path(os.path.expanduser(model)).exists()


def is_gguf_file(model: str) -> bool:
    """Whether a name means a GGUF file of this machine."""
    return model.lower().endswith(SUFFIX) and Path(os.path.expanduser(model)).is_file()


def is_gguf(model: str) -> bool:
    """Whether a name means a GGUF file, of this machine or of the Hub."""
    here = Path(os.path.expanduser(model))
    return is_gguf_file(model) or (is_hub_gguf(model) and not here.exists())


def has_hub_form(name: str) -> bool:
    """Whether a name could be a repository's, whatever lies here."""
    return _HUB_ID.fullmatch(name) is not None


def _open_base(
    model: str, revision: str | None, part: str | None, progress: Progress
) -> Checkpoint:
    # Path.expanduser fails on an unknown user; this leaves the text as it is.
    folder = Path(os.path.expanduser(model))
    is_synthetic = model.startswith(_SYNTHETIC)
    if revision is not None and (is_synthetic or folder.exists()):
        raise SourceError(
            f"revision {revision!r} was given with {model!r}, but only Hub models have "
            "revisions; leave it out"
        )
    if part is not None and (is_synthetic or is_gguf(model)):
        raise SourceError(f"{model} is a text model and has no parts: leave --part out")
    if is_synthetic:
        return open_synthetic(model.removeprefix(_SYNTHETIC))
    if model and folder.is_dir():
        return open_folder(folder, part=part)
    if is_gguf_file(model):
        return open_gguf(folder)
    if is_hub_id(model):
        return open_hub(model, revision, progress, part)
    if is_hub_gguf(model) and not folder.exists():
        return open_hub_gguf(model, revision, progress)
    seen = "is a file" if model and folder.exists() else "was not found"
    raise SourceError(f"model {model!r} {seen}: expected {_FORMS}")
