"""What a comparison cannot do without, looked for before anything is exported or timed."""

from __future__ import annotations

from collections.abc import Sequence

from lfm2_deploy.auto import AUTO
from lfm2_deploy.compare.subjects import BUNDLE, HUGGING_FACE, TORCH, Subject
from lfm2_deploy.errors import RequestError
from lfm2_deploy.registry import (
    EXPORTER,
    RUNTIMES,
    STREAMED_REFERENCE,
    TRANSFORMERS,
    find_entry,
    find_target,
)
from lfm2_deploy.words import suggest


def require_subjects(subjects: Sequence[Subject]) -> None:
    """See that what runs subjects is installed; devices are looked for when they are loaded.

    Raises:
        RuntimeUnavailableError: a package is missing.
    """
    for subject in subjects:
        if subject.bundle is not None:
            _require_runtime(subject.runtime)
        elif subject.kind in (TORCH, HUGGING_FACE):
            RUNTIMES["reference"].require()
        if subject.kind == HUGGING_FACE:
            TRANSFORMERS.require()


def require_reference(chosen: Subject | None, first: str) -> None:
    """Likewise, of the reference.

    Args:
        chosen: what the user named; None for what the first subject was made from, or itself.
        first: kind of the first subject.

    Raises:
        RuntimeUnavailableError: a package is missing.
    """
    if chosen is None:
        if first in (BUNDLE, TORCH):
            STREAMED_REFERENCE.require()
    elif chosen.kind == TORCH:
        STREAMED_REFERENCE.require()
    else:
        require_subjects([chosen])


def require_exports(targets: Sequence[str], precisions: Sequence[str]) -> None:
    """See that bundles can be made, and run, for all targets in all precisions.

    Raises:
        RuntimeUnavailableError: there is no such target, or a package is missing.
        GenerationError: a target has no such precision.
    """
    EXPORTER.require()
    for name in targets:
        if name == AUTO:  # what it stands for is found out when it is exported
            continue
        find_entry("target", name).require()
        target = find_target(name)
        _require_runtime(target.runtime)
        for precision in precisions:
            if precision not in target.precisions:
                raise RequestError(
                    f"target {name} has no precision {precision!r}: expected one of "
                    f"{', '.join(target.precisions)}{suggest(precision, target.precisions)}"
                )


def _require_runtime(name: str) -> None:
    """Of ours; other packages' say what they need when they are loaded."""
    if name in RUNTIMES:
        RUNTIMES[name].require()
