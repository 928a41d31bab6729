"""A GGUF file of the Hub -> an open `GgufCheckpoint` over the local cache.

Enters: `owner/name:Q4_0` or `owner/name/file.gguf`. Leaves: the checkpoint, whose origin names
repository, file and commit, so that it can be opened again.
"""

from __future__ import annotations

import re
from glob import escape
from pathlib import Path

from lfm2_deploy.checkpoint.gguf_checkpoint import GgufCheckpoint, open_gguf
from lfm2_deploy.checkpoint.hub import fetch_matching
from lfm2_deploy.contracts import Origin, Progress
from lfm2_deploy.errors import SourceError

_FORM = re.compile(
    r"(?P<repository>[A-Za-z0-9][\w.-]*/[\w.-]+)(:(?P<kind>[A-Za-z0-9_]+)|/(?P<file>[\w.-]+\.gguf))"
)
# Encoders of images and sound lie beside the models that they belong to.
_PROJECTOR = "mmproj"


def is_hub_gguf(model: str) -> bool:
    """Whether a name has the form of a GGUF file of the Hub."""
    return _FORM.fullmatch(model) is not None


def open_hub_gguf(model: str, revision: str | None, progress: Progress) -> GgufCheckpoint:
    """Download a file that is not yet cached, and open it.

    Args:
        model: of a form that `is_hub_gguf` knows.
        revision: branch, tag or commit; the default branch when None.
        progress: told when the download starts and ends.

    Raises:
        SourceError: not found, gated, unreachable, or no one file is meant.
        ConfigError, CheckpointError: as `open_gguf`.
    """
    match = _FORM.fullmatch(model)
    assert match is not None
    repository, kind, name = match["repository"], match["kind"], match["file"]
    pattern = escape(name) if name else f"*[-._]{_ignore_case(kind)}.gguf"
    progress(f"download {model}", 0, 0)
    folder, commit = fetch_matching(repository, revision, (pattern,))
    path = _choose(model, sorted(folder.glob(pattern)))
    progress(f"download {model}", 1, 1)
    return open_gguf(path, Origin("hub", f"{repository}/{path.name}", commit))


def _ignore_case(kind: str) -> str:
    """The same as a pattern for either case: repositories write q4_0 and Q4_0."""
    return "".join(f"[{c.lower()}{c.upper()}]" if c.isalpha() else c for c in kind)


def _choose(model: str, found: list[Path]) -> Path:
    models = [file for file in found if not file.name.lower().startswith(_PROJECTOR)]
    if len(models) == 1:
        return models[0]
    repository = _FORM.sub(r"\g<repository>", model)
    if not models:
        raise SourceError(
            f"{model} was not found: {repository} has no such GGUF file; "
            f"see https://huggingface.co/{repository}/tree/main for those it has"
        )
    raise SourceError(
        f"{model} may mean {' or '.join(file.name for file in models[:3])}; "
        f"name one as {repository}/{models[0].name}"
    )
