"""What a user wants to pull -> where a bundle, or a checkpoint to export, comes from."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

from lfm2_deploy.bundle import CARD, MANIFEST, MEASUREMENTS, is_bundle
from lfm2_deploy.checkpoint.folder import CONFIG_FILE
from lfm2_deploy.checkpoint.hub import describe_hub, fetch_known
from lfm2_deploy.checkpoint.source import is_hub_id
from lfm2_deploy.demo import DEMO_MODEL
from lfm2_deploy.errors import SourceError, StoreError
from lfm2_deploy.manifest import Manifest, read_manifest

DEMO = "demo"
_SYNTHETIC = "synthetic:"
# Small files that tell what a repository is, and those that a manifest does not list.
_LOOKED_AT = (MANIFEST, CONFIG_FILE, CARD, MEASUREMENTS)


@dataclass(frozen=True, slots=True)
class CheckpointSource:
    """A model that must be exported.

    Args:
        model: as `export` takes it.
        name: what a bundle's name begins with.
    """

    model: str
    name: str


@dataclass(frozen=True, slots=True)
class BundleSource:
    """A bundle that must only be fetched.

    Args:
        folder: where it lies; of a repository only its manifest, and what is beside it.
        manifest: what it says.
        repository: its Hub id; "" for a folder.
        commit: of the repository.
    """

    folder: Path
    manifest: Manifest
    repository: str = ""
    commit: str = ""


def write_source(model: str) -> str:
    """What is kept of what the user wrote: the full path of a folder, all else as it is."""
    folder = _find_folder(model)
    return model if folder is None else str(folder.resolve())


def find_source(
    model: str, revision: str | None, part: str | None = None
) -> CheckpointSource | BundleSource:
    """Understand what a user wants to pull; of a repository, a few small files are downloaded.

    Args:
        model: a folder, a Hub id, "synthetic:NAME" or "demo".
        revision: branch, tag or commit of a Hub repository.
        part: "text" for the text part of a vision or audio model.

    Raises:
        StoreError: it is nothing that can be pulled.
        SourceError: the repository is not found, unreachable, or of another kind.
        BundleError: a manifest is damaged or of another schema.
    """
    folder = _find_folder(model)
    if folder is None and is_hub_id(model):
        return _look_at_hub(model, revision, part)
    if revision is not None:
        raise StoreError(f"only Hub models have revisions, and {model} is none: leave it out")
    if folder is not None:
        return _look_at_folder(folder)
    if model == DEMO:
        return CheckpointSource(str(DEMO_MODEL), DEMO)
    if model.startswith(_SYNTHETIC):
        return CheckpointSource(model, model)
    raise StoreError(
        f"{model!r} is nothing that can be pulled: expected a Hub id 'owner/name' such as "
        "LiquidAI/LFM2-350M, the folder of a bundle or checkpoint, synthetic:NAME, or demo"
    )


def _find_folder(model: str) -> Path | None:
    """The folder that is meant; one called "demo" only where it holds a model."""
    folder = Path(os.path.expanduser(model))
    if not model or not folder.is_dir():
        return None
    means_other = model == DEMO and not any(
        (folder / file).is_file() for file in (MANIFEST, CONFIG_FILE)
    )
    return None if means_other else folder


def _look_at_folder(folder: Path) -> CheckpointSource | BundleSource:
    if is_bundle(folder):
        return BundleSource(folder, read_manifest(folder)[0])
    if not any((folder / file).is_file() for file in (CONFIG_FILE, "adapter_config.json")):
        raise StoreError(
            f"{folder} is neither a bundle (no {MANIFEST}) nor a checkpoint (no {CONFIG_FILE})"
        )
    return CheckpointSource(str(folder), str(folder))


def _look_at_hub(
    model: str, revision: str | None, part: str | None
) -> CheckpointSource | BundleSource:
    folder, commit = fetch_known(model, revision, _LOOKED_AT)
    if is_bundle(folder):
        return BundleSource(folder, read_manifest(folder)[0], model, commit)
    try:
        describe_hub(model, revision, part)
    except SourceError as error:
        if (folder / MANIFEST).is_file() or (folder / CONFIG_FILE).is_file():
            raise
        raise SourceError(f"{model} has no {MANIFEST}, so it is no bundle; and {error}") from error
    return CheckpointSource(model, model)
