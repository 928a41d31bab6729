"""`push`: a bundle is checked, gets its card, and goes up to the Hub."""

from __future__ import annotations

import contextlib
from dataclasses import dataclass
from pathlib import Path

from lfm2_deploy.bundle import Bundle, open_bundle
from lfm2_deploy.card.write import is_edited, merge_card, read_card
from lfm2_deploy.contracts import Progress, ignore_progress
from lfm2_deploy.errors import BundleError, PublishError
from lfm2_deploy.intact import ensure_intact
from lfm2_deploy.manifest import read_manifest
from lfm2_deploy.publish.hub import Remote, Wish, look, open_api, refuse_others, upload
from lfm2_deploy.publish.plan import Plan, list_warnings, make_plan
from lfm2_deploy.store.resolve import resolve


@dataclass(frozen=True, slots=True)
class Pushed:
    """What a push did, or would do.

    Args:
        plan: files with their sizes, and what their publisher should know.
        url: where it can be seen; "" of a dry run.
    """

    plan: Plan
    url: str


def push(
    bundle: str | Path | Bundle,
    repository: str,
    *,
    private: bool = False,
    revision: str | None = None,
    message: str | None = None,
    create_pr: bool = False,
    beside_others: bool = False,
    dry_run: bool = False,
    progress: Progress = ignore_progress,
) -> Pushed:
    """Upload a bundle to the Hugging Face Hub, in one commit, with its model card.

    Every file is hashed first. The bundle's folder is not changed.

    Args:
        bundle: the folder, its name in the store, or the opened bundle.
        repository: "user/name"; made where it is not there.
        private: make it private, where it is made.
        revision: a branch; made where it is not there. None for the default one.
        message: of the commit; None for one that names the bundle.
        create_pr: as a pull request, on the default branch.
        beside_others: into a repository that holds other files, too, which stay there.
        dry_run: only say what would go up; needs neither network nor token.
        progress: told of the bytes that are hashed, and when the upload begins and ends.

    Returns:
        What went up, and where it can be seen.

    Raises:
        BundleError: the bundle is absent or damaged.
        PublishError: it should be mended first, there is no token, or the Hub refuses or cannot
            be reached.
        RuntimeUnavailableError: huggingface_hub is not installed.
    """
    if create_pr and revision not in (None, "main"):
        raise PublishError("a pull request goes to the default branch: leave --revision out")
    opened = bundle if isinstance(bundle, Bundle) else open_bundle(resolve(bundle))
    plan = make_plan(opened, repository)
    api = None if dry_run else open_api()
    ensure_intact(opened, progress, again=True)
    if api is None:
        return Pushed(plan, "")
    manifest = opened.manifest
    told = message or f"{manifest.model}, {manifest.precision} for {manifest.target}"
    wish = Wish(private, revision, told, create_pr, beside_others)
    remote = look(api, repository, wish)
    refuse_others(plan, remote, wish)
    plan = _take_over_card(opened, plan, remote)
    return Pushed(plan, upload(api, plan, remote, wish, progress))


def _take_over_card(bundle: Bundle, plan: Plan, remote: Remote) -> Plan:
    """Keep what was written by hand on the Hub, where nothing was written by hand here."""
    before = bundle
    if remote.folder is not None:
        with contextlib.suppress(BundleError):  # somebody else's manifest, or a newer one
            before = Bundle(remote.folder, *read_manifest(remote.folder))
    if not is_edited(remote.card, before) or is_edited(read_card(bundle.path), bundle):
        return plan
    card = merge_card(remote.card, before, bundle, plan.repository)
    other = [w for w in plan.warnings if w not in list_warnings(bundle, plan.card)]
    kept = Plan(plan.repository, plan.files, (*other, *list_warnings(bundle, card)))
    return kept.with_card(card)
