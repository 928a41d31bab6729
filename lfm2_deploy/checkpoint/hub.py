"""A Hub id -> `FolderCheckpoint` over the local cache.

Enters: `owner/name` and a revision. Leaves: an open folder whose origin names the
commit. The download, its resumption and its progress bars are huggingface_hub's,
which is imported only here, and reads HF_TOKEN and HF_HUB_OFFLINE itself.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from glob import escape
from pathlib import Path

from lfm2_deploy.checkpoint.folder import (
    CONFIG_FILE,
    INDEX_FILE,
    SIDE_FILES,
    SINGLE_FILE,
    FolderCheckpoint,
    lacks_weights,
    open_folder,
    read_description,
    read_index,
)
from lfm2_deploy.config import Lfm2Config
from lfm2_deploy.contracts import Origin, Progress
from lfm2_deploy.errors import RuntimeUnavailableError, SourceError

_DESCRIPTION = (CONFIG_FILE, *SIDE_FILES)
_WEIGHTS = ("model*.safetensors", INDEX_FILE)
_PATIENCE_S = 10.0


def open_hub(
    model: str, revision: str | None, progress: Progress, part: str | None = None
) -> FolderCheckpoint:
    """Download what is not yet cached, and open it.

    Args:
        model: `owner/name`.
        revision: branch, tag or commit; the default branch when None.
        progress: told when the download starts and ends.
        part: "text" for the text part of a vision or audio model; files with none of its
            tensors are not downloaded.

    Returns:
        The checkpoint; its origin's revision is the commit's hash.

    Raises:
        SourceError: not found, gated, unreachable, or not a transformers checkpoint.
        ConfigError, CheckpointError: as `folder.open_folder`.
    """
    what = f"download {model}"
    progress(what, 0, 0)
    # Config first: a model that cannot be exported is refused before its weights come.
    _, origin = describe_hub(model, revision, part)
    commit = origin.revision
    folder = _download_weights(model, commit, revision, part)
    if not any(folder.glob(_WEIGHTS[0])):
        raise SourceError(
            f"{model} came without {_WEIGHTS[0]}: if it has only pickled weights, which are never "
            "opened, convert them to safetensors (save_pretrained does) and pass the folder"
        )
    progress(what, 1, 1)
    return open_folder(folder, origin, part)


def _download_weights(model: str, commit: str, revision: str | None, part: str | None) -> Path:
    """The folder with the weights; of a part, with the files that it lies in."""
    if part is None:
        folder = _download(model, commit, _WEIGHTS)
        if lacks_weights(folder):
            _require_hub(model, commit, shown=revision)
        return folder
    folder = _download(model, commit, (INDEX_FILE,))
    whole = read_description(folder, part, model).whole
    index = folder / INDEX_FILE
    files = [file.name for file in read_index(index, whole)] if index.is_file() else [SINGLE_FILE]
    folder = _download(model, commit, tuple(map(escape, files)))
    if lacks_weights(folder, whole):
        _require_hub(model, commit, shown=revision)
    return folder


def describe_hub(
    model: str, revision: str | None, part: str | None = None
) -> tuple[Lfm2Config, Origin]:
    """Download all but the weights, a few megabytes.

    Args:
        model: `owner/name`.
        revision: branch, tag or commit; the default branch when None.
        part: as `open_hub` takes it.

    Returns:
        The config, and the origin with the commit's hash.

    Raises:
        SourceError, ConfigError: as `open_hub`.
    """
    folder = _download(model, revision, _DESCRIPTION)
    if not (folder / CONFIG_FILE).is_file():
        _require_hub(model, revision, shown=revision)
        raise SourceError(
            f"{model} has no {CONFIG_FILE} on the Hub, so it is no transformers checkpoint "
            f"(perhaps GGUF or ONNX files); name a GGUF file as {model}:Q4_0, or use the original "
            "model, such as LiquidAI/LFM2-1.2B"
        )
    config = read_description(folder, part, model).config
    # The cache names a snapshot's folder by its commit.
    return config, Origin(kind="hub", name=model, revision=folder.name, part=part or "")


def fetch_known(model: str, revision: str | None, names: Sequence[str]) -> tuple[Path, str]:
    """Download those of these small files that a repository has.

    Args:
        model: `owner/name`.
        revision: branch, tag or commit; the default branch when None.
        names: files' names.

    Returns:
        The folder they lie in, in the cache, and the commit's hash.

    Raises:
        SourceError: the repository is not found, gated or unreachable.
    """
    folder = _download(model, revision, tuple(map(escape, names)))
    if not any((folder / name).is_file() for name in names):
        _require_hub(model, revision, shown=revision)
    return folder, folder.name


def fetch_matching(model: str, revision: str | None, patterns: Sequence[str]) -> tuple[Path, str]:
    """Download the files of a repository whose names fit one of some patterns.

    Args:
        model: `owner/name`.
        revision: branch, tag or commit; the default branch when None.
        patterns: as `fnmatch` takes them; upper and lower case differ.

    Returns:
        The folder they lie in, in the cache, and the commit's hash.

    Raises:
        SourceError: the repository is not found, gated or unreachable.
    """
    folder = _download(model, revision, tuple(patterns))
    if not any(next(folder.glob(pattern), None) for pattern in patterns):
        _require_hub(model, revision, shown=revision)
    return folder, folder.name


def fetch_files(
    model: str, commit: str, sizes: Mapping[str, int], folder: Path, progress: Progress
) -> None:
    """Download files into a folder; what an interrupted call left there is gone on with.

    `snapshot_download` begins a file anew that a process did not finish, and so this does not use
    it: of a bundle, nearly all bytes are one file's.

    Args:
        model: `owner/name`.
        commit: its hash, as all of a folder must be of one.
        sizes: name -> bytes of each file.
        folder: where to; files that are not whole yet end in ".part".
        progress: told when the download starts and ends.

    Raises:
        SourceError: the Hub is unreachable, a file is not there, or the disk is full.
    """
    from huggingface_hub import hf_hub_url
    from huggingface_hub.file_download import http_get
    from huggingface_hub.utils import build_hf_headers  # type: ignore[attr-defined]

    what = f"download {model}"
    progress(what, 0, 0)
    for name, size in sizes.items():
        if (folder / name).is_file():
            continue
        part = folder / f"{name}.part"
        part.parent.mkdir(exist_ok=True)
        try:
            with part.open("ab") as stream:
                if stream.tell() > size:
                    stream.truncate(0)
                if size:
                    http_get(
                        hf_hub_url(model, name, revision=commit),
                        stream,
                        resume_size=stream.tell(),
                        headers=build_hf_headers(),
                        expected_size=size,
                    )
        except Exception as error:  # as in `_download`
            raise SourceError(_explain(model, None, error)) from error
        part.replace(folder / name)
    progress(what, 1, 1)


def _download(model: str, revision: str | None, patterns: tuple[str, ...]) -> Path:
    try:
        import huggingface_hub
    except ImportError as error:
        raise RuntimeUnavailableError(_explain_no_hub(model)) from error
    try:
        return Path(
            huggingface_hub.snapshot_download(
                model, revision=revision, allow_patterns=list(patterns)
            )
        )
    # Its HTTP client's own errors pass through the library, and are of no common base.
    except Exception as error:
        raise SourceError(_explain(model, revision, error)) from error


def _explain_no_hub(model: str) -> str:
    return (
        f"{model} is a Hub id, and huggingface_hub is not installed; "
        "pip install 'lfm2-deploy[hub]' (in a clone: '.[hub]'), or pass a local folder"
    )


def _require_hub(model: str, revision: str | None, shown: str | None) -> None:
    """Ask the Hub for a model whose folder lacks files.

    `snapshot_download` gives out what is cached when the Hub cannot be reached, so only
    its answer tells a repository without these files from a cache without them.

    Args:
        model: `owner/name`.
        revision: what to ask for.
        shown: what the user asked for, to name in the error.

    Raises:
        SourceError: the Hub did not answer, or refused.
    """
    from huggingface_hub import HfApi, errors

    try:
        HfApi().model_info(model, revision=revision, timeout=_PATIENCE_S)
    except (errors.RepositoryNotFoundError, errors.RevisionNotFoundError) as error:
        raise SourceError(_explain(model, shown, error)) from error
    except Exception as error:  # as in `_download`
        raise SourceError(_explain_incomplete(model, shown)) from error


def _explain_incomplete(model: str, revision: str | None) -> str:
    at = "" if revision is None else f" at revision {revision}"
    return (
        f"{model}{at} is not complete in the local cache and the Hub cannot be reached "
        "(offline, or HF_HUB_OFFLINE is set); connect, or pass a local folder"
    )


def _explain(model: str, revision: str | None, error: Exception) -> str:
    from huggingface_hub import errors

    page = f"https://huggingface.co/{model}"
    match error:
        case errors.GatedRepoError():
            return f"{model} is gated: ask for access at {page}, then set HF_TOKEN"
        case errors.RepositoryNotFoundError():
            return (
                f"{model} was not found on the Hub, nor as a local folder; check the spelling, "
                "or set HF_TOKEN if it is private"
            )
        case errors.RevisionNotFoundError():
            return f"{model} has no revision {revision!r}; see {page}/commits for those it has"
        case errors.LocalEntryNotFoundError() | errors.OfflineModeIsEnabled():
            return _explain_incomplete(model, revision)
        case errors.HFValidationError():
            return f"{model!r} is not a valid Hub id: expected 'owner/name'"
    detail = " ".join(str(error).split())
    return (
        f"{model} could not be downloaded ({type(error).__name__}: {detail}); "
        "try again, what has arrived is kept"
    )


def list_files(model: str, revision: str | None) -> tuple[list[str], str]:
    """Names of all files of a repository, and the commit's hash.

    Args:
        model: `owner/name`.
        revision: branch, tag or commit; the default branch when None.

    Raises:
        RuntimeUnavailableError: huggingface_hub is not installed.
        SourceError: the repository is not found, gated or unreachable.
    """
    try:
        from huggingface_hub import HfApi
    except ImportError as error:
        raise RuntimeUnavailableError(_explain_no_hub(model)) from error
    try:
        info = HfApi().model_info(model, revision=revision, timeout=_PATIENCE_S)
    except Exception as error:  # as in `_download`
        raise SourceError(_explain(model, revision, error)) from error
    return [file.rfilename for file in info.siblings or ()], str(info.sha)
