"""The demo model's bundle: where it lies, and whether the one there is still good."""

from __future__ import annotations

import json
from hashlib import sha256
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from lfm2_deploy.bundle import CANARY, DEMO_SOURCE, MANIFEST, Bundle, open_bundle
from lfm2_deploy.contracts import Progress
from lfm2_deploy.demo import DEMO_MODEL
from lfm2_deploy.errors import BundleError
from lfm2_deploy.json_file import read_json_object
from lfm2_deploy.machine import find_cache


def find_demo_bundle(out: Path | None, precision: str, fresh: bool) -> tuple[Bundle | None, str]:
    """The demo model's bundle that an earlier call made, if it is still good.

    Args:
        out: its folder; one in the user's cache when None.
        precision: as `export` takes it.
        fresh: find none, so that it is made again.

    Returns:
        The bundle, and ""; or None, and what is the matter with the one that is there.
    """
    place = _choose_place(out, precision)
    try:
        source = read_json_object(place / DEMO_SOURCE, BundleError, "it is made anew")
        bundle = open_bundle(place)
    except (OSError, BundleError):
        return None, ""
    if fresh:
        return None, ""
    fault = _find_fault(bundle, precision, source == _describe_source())
    return (None, fault) if fault else (bundle, "")


def _find_fault(bundle: Bundle, precision: str, is_of_this_model: bool) -> str:
    """Why a bundle that is there is not what would be made now; "" where it is."""
    if not is_of_this_model:
        return "the one kept is of another demo model"
    if bundle.manifest.precision != precision:
        return f"the one kept is in {bundle.manifest.precision}"
    if CANARY not in bundle.manifest.files:
        return "the one kept has no canary"
    made_with = bundle.manifest.made_with
    # Its maker's version is always told; without torch, the demo runs but is not made anew.
    changed = [name for name, made in made_with.items() if _find_version(name) not in (made, "")]
    if "lfm2-deploy" not in made_with or changed:
        return f"the one kept was made with another {(changed or ['lfm2-deploy'])[0]}"
    return ""


def _find_version(package: str) -> str:
    """What is installed; "" for none."""
    try:
        return version(package)
    except PackageNotFoundError:
        return ""


def make_demo_bundle(out: Path | None, precision: str, fresh: bool, progress: Progress) -> Bundle:
    """Export the demo model; see `find_demo_bundle` for the arguments.

    Raises:
        Lfm2DeployError: it cannot be made, or `out` holds another bundle and not `fresh`.
    """
    from lfm2_deploy.api import export

    place = _choose_place(out, precision)
    if out is not None and not fresh and (out / MANIFEST).exists():
        raise BundleError(
            f"{out} holds another bundle, or one of another model or version: "
            "pass --fresh to replace it, or another --out"
        )
    bundle = export(str(DEMO_MODEL), place, precision=precision, overwrite=True, progress=progress)
    (place / DEMO_SOURCE).write_text(json.dumps(_describe_source()) + "\n", encoding="utf-8")
    return bundle


def _choose_place(out: Path | None, precision: str) -> Path:
    return out or find_cache() / f"demo-{precision}"


def _describe_source() -> dict[str, str]:
    return {"checkpoint_sha256": hash_demo_model()}


def hash_demo_model() -> str:
    """sha256 over every file of the demo model, in order of their names."""
    total = sha256()
    for file in sorted(DEMO_MODEL.iterdir()):
        total.update(sha256(file.read_bytes()).digest())
    return total.hexdigest()
