"""A `Plan` -> one commit in a repository of the Hub, by huggingface_hub.

All files appear together or none does. What was sent before an upload broke off is found again by
its hash (and with hf_xet, piece by piece), so the same push goes on. Tokens, endpoint and progress
bars are huggingface_hub's, which reads HF_TOKEN, HF_ENDPOINT and HF_HUB_OFFLINE itself.
"""

from __future__ import annotations

import json
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lfm2_deploy.bundle import CARD, MANIFEST, MEASUREMENTS
from lfm2_deploy.contracts import Progress
from lfm2_deploy.errors import Lfm2DeployError, PublishError, RuntimeUnavailableError
from lfm2_deploy.publish.plan import Plan, PlannedFile

if TYPE_CHECKING:
    from huggingface_hub import HfApi

_TOKENS = "https://huggingface.co/settings/tokens"
# What may lie in a repository beside any bundle.
_ALWAYS_THERE = frozenset({".gitattributes", "LICENSE", "LICENSE.md", "LICENSE.txt", "NOTICE"})
_OWN = frozenset({CARD, MANIFEST, MEASUREMENTS})
_PATIENCE_S = 20.0
# Of whatever HTTP client huggingface_hub uses: httpx's errors, and Python's own.
_UNREACHED = frozenset({"TransportError", "ConnectionError", "TimeoutError"})
_UNAUTHORIZED, _FORBIDDEN, _CONFLICT, _CHANGED = 401, 403, 409, 412


@dataclass(frozen=True, slots=True)
class Wish:
    """How to upload.

    Args:
        private: a repository that is made is private; one that is there stays as it is.
        revision: the branch; None for the default one. It is made where it is not there.
        message: of the commit.
        create_pr: as a pull request, for who owns the repository to merge.
        beside_others: into a repository that holds other files, too; they stay.
    """

    private: bool = False
    revision: str | None = None
    message: str = ""
    create_pr: bool = False
    beside_others: bool = False


@dataclass(frozen=True, slots=True)
class Remote:
    """A repository as it is before a push.

    Args:
        exists: it is there.
        files: names of its files.
        bundle_files: those that the manifest of a bundle that is there lists.
        card: its model card; "" for none.
        folder: where its manifest and card were downloaded to; None where it has none.
    """

    exists: bool
    files: tuple[str, ...] = ()
    bundle_files: frozenset[str] = frozenset()
    card: str = ""
    folder: Path | None = None


def open_api() -> HfApi:
    """The Hub, with a token.

    Raises:
        RuntimeUnavailableError: huggingface_hub is not installed.
        PublishError: there is no token.
    """
    try:
        from huggingface_hub import HfApi, get_token
    except ImportError as error:
        raise RuntimeUnavailableError(
            "push needs huggingface_hub, which is not installed; pip install 'lfm2-deploy[hub]' "
            "(in a clone: '.[hub]')"
        ) from error
    if get_token() is None:
        raise PublishError(
            f"there is no token of the Hub: make one that may write at {_TOKENS}, then "
            "`hf auth login`, or set HF_TOKEN"
        )
    return HfApi()


def look(api: HfApi, repository: str, wish: Wish) -> Remote:
    """What is in a repository now.

    Raises:
        PublishError: the Hub refuses or cannot be reached.
    """
    from huggingface_hub import errors

    revision = None if wish.create_pr else wish.revision
    with _explaining(repository):
        try:
            # Other calls try for half a minute to reach a Hub that is not there.
            info = api.model_info(repository, revision=revision, timeout=_PATIENCE_S)
        except errors.RevisionNotFoundError:
            return Remote(exists=True)
        except errors.RepositoryNotFoundError as error:
            if _find_status(error) == _UNAUTHORIZED:
                raise
            return Remote(exists=False)
        files = tuple(sibling.rfilename for sibling in info.siblings or ())
        texts = {
            name: Path(api.hf_hub_download(repository, name, revision=revision))
            for name in (MANIFEST, CARD)
            if name in files
        }
    card = texts[CARD].read_text("utf-8", errors="surrogateescape") if CARD in texts else ""
    folder = next((text.parent for text in texts.values()), None)
    return Remote(True, files, _read_bundle_files(texts.get(MANIFEST)), card, folder)


def refuse_others(plan: Plan, remote: Remote, wish: Wish) -> None:
    """See that nothing of somebody's is mixed with the bundle.

    Raises:
        PublishError: the repository holds other files, and that is not asked for.
    """
    names = {file.name for file in plan.files}
    known = names | remote.bundle_files | _ALWAYS_THERE | _OWN
    others = sorted(set(remote.files) - known)
    if others and not wish.beside_others:
        more = f" and {len(others) - 1} more" if len(others) > 1 else ""
        raise PublishError(
            f"{plan.repository} holds {others[0]}{more}, which is no part of the bundle: choose "
            "another repository, or pass --beside-others to leave them there"
        )


def upload(api: HfApi, plan: Plan, remote: Remote, wish: Wish, progress: Progress) -> str:
    """Upload everything in one commit; files of an older bundle that are no more go.

    Returns:
        The address of the repository, of its branch or of the pull request.

    Raises:
        PublishError: the Hub refuses, or cannot be reached.
    """
    what = f"upload to {plan.repository}"
    progress(what, 0, 0)
    with _explaining(plan.repository):
        if not remote.exists:
            api.create_repo(plan.repository, private=wish.private or None, exist_ok=True)
        if wish.revision is not None and not wish.create_pr:
            api.create_branch(plan.repository, branch=wish.revision, exist_ok=True)
        with warnings.catch_warnings():
            # What the Hub remarks on metadata is told by `plan.list_warnings`.
            warnings.simplefilter("ignore")
            commit = api.create_commit(
                plan.repository,
                _list_operations(plan.files, remote),
                commit_message=wish.message,
                revision=wish.revision,
                create_pr=wish.create_pr,
            )
    progress(what, 1, 1)
    if commit.pr_url is not None:
        return str(commit.pr_url)
    page = f"{api.endpoint}/{plan.repository}"
    return page if wish.revision is None else f"{page}/tree/{wish.revision}"


def _list_operations(files: Sequence[PlannedFile], remote: Remote) -> list[Any]:
    from huggingface_hub import CommitOperationAdd, CommitOperationDelete

    adds = [
        CommitOperationAdd(file.name, file.content if file.path is None else str(file.path))
        for file in files
    ]
    stale = (remote.bundle_files & set(remote.files)) - {file.name for file in files} - _OWN
    if MEASUREMENTS in remote.files and MEASUREMENTS not in {file.name for file in files}:
        stale |= {MEASUREMENTS}
    return [*adds, *(CommitOperationDelete(name) for name in sorted(stale))]


def _read_bundle_files(manifest: Path | None) -> frozenset[str]:
    """Names that a manifest lists, if it is of one of our bundles."""
    try:
        raw = {} if manifest is None else json.loads(manifest.read_text("utf-8"))
        is_ours = {"schema_version", "quantization", "files"} <= raw.keys()
        return frozenset(raw["files"]) if is_ours else frozenset()
    except (OSError, ValueError, AttributeError, TypeError):
        return frozenset()


@contextmanager
def _explaining(repository: str) -> Iterator[None]:
    """Say in one line what the Hub, or the way to it, has against an upload."""
    try:
        yield
    except Lfm2DeployError:
        raise
    # Its HTTP client's own errors pass through the library, and are of no common base.
    except Exception as error:
        raise PublishError(_explain(repository, error)) from error


def _explain(repository: str, error: Exception) -> str:
    from huggingface_hub import errors

    while type(error) is RuntimeError and isinstance(error.__cause__, Exception):
        error = error.__cause__  # "Error while uploading ...", which says nothing of why
    status, detail = _find_status(error), " ".join(str(error).split())
    match error:
        case errors.HFValidationError():
            return f"{repository!r} is no Hub id ({detail}): expected USER/REPO"
        case errors.OfflineModeIsEnabled():
            return "HF_HUB_OFFLINE is set, so nothing goes up: unset it"
        case errors.RepositoryNotFoundError() if status != _UNAUTHORIZED:
            return (
                f"{repository} was not found, or the token may not see it (404): check the "
                f"spelling and the token's rights at {_TOKENS}"
            )
        case ValueError() if "metadata" in detail:
            return f"the Hub refuses the metadata of {CARD} ({detail}): mend it and push again"
    if status == _UNAUTHORIZED:
        return f"the Hub does not accept the token (401): make another at {_TOKENS}"
    if status == _FORBIDDEN:
        return (
            f"the token may not write to {repository} (403): give it the right to write at "
            f"{_TOKENS}, or ask its owner (--create-pr makes a pull request)"
        )
    if status in (_CONFLICT, _CHANGED):
        return f"{repository} was changed meanwhile ({status}): push again"
    if status is None and _UNREACHED & {kind.__name__ for kind in type(error).__mro__}:
        return (
            f"the Hub cannot be reached ({type(error).__name__}: {detail[:200]}): push again when "
            "it can, what was sent is found there"
        )
    what = type(error).__name__ if status is None else status
    return (
        f"the upload to {repository} failed ({what}: {detail[:300]}): push again, what was sent is "
        "not sent again"
    )


def _find_status(error: Exception) -> int | None:
    """The HTTP status an error comes from; None where there was no answer."""
    response = getattr(error, "response", None)
    return None if response is None else int(response.status_code)
