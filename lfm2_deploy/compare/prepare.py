"""A truth -> a reference: found in the cache, computed, or read from a base file."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, closing
from dataclasses import fields
from pathlib import Path

import numpy as np

from lfm2_deploy.compare.base_file import measure_base_file, write_base_file
from lfm2_deploy.compare.metrics import DoubleArray, negative_log_likelihood
from lfm2_deploy.compare.protocol import Windows
from lfm2_deploy.compare.reference import (
    BaseReference,
    Reference,
    StoredReference,
    list_requests,
    measure_reference,
)
from lfm2_deploy.compare.reference_cache import (
    Key,
    find_reference,
    keep_for_now,
    keep_reference,
    make_key,
)
from lfm2_deploy.compare.result import Estimate
from lfm2_deploy.compare.scorer import Scored, Scorer
from lfm2_deploy.compare.subjects import Subject
from lfm2_deploy.compare.summarize import estimate_perplexity
from lfm2_deploy.compare.truth import Truth
from lfm2_deploy.contracts import Origin, Progress
from lfm2_deploy.errors import GenerationError

# Of a config, what no logits depend on: a bundle may record less, or newer words.
_NOT_OF_THE_MODEL = {
    "assumptions",
    "bos_token_id",
    "eos_token_ids",
    "max_position_embeddings",
    "pad_token_id",
}


class Oracle:
    """A reference and, where there is a model behind it, that model; a context manager.

    Args:
        truth: where it comes from.
        windows: what is compared on.
        cache: whether to keep and to find it in the user's cache.
        versions: of packages, which its key holds.
        progress: told of each step.
    """

    def __init__(
        self,
        truth: Truth,
        windows: Windows,
        cache: bool,
        versions: dict[str, str],
        progress: Progress,
    ) -> None:
        self._truth, self._windows, self._progress = truth, windows, progress
        self._stack = ExitStack()
        self._key: Key | None = None
        if cache and truth.identify is not None:
            used = [versions.get(name, "") for name in ("lfm2-deploy", "torch")]
            self._key = make_key(
                truth.identify(progress), used, windows, f"{truth.name}, {windows.text}"
            )
        self.cached = False
        self.reference: Reference

    def __enter__(self) -> Oracle:
        try:
            self.reference = self._find()
        except BaseException:
            self._stack.close()
            raise
        return self

    def __exit__(self, *exception: object) -> None:
        self._stack.close()

    @property
    def has_model(self) -> bool:
        """Whether it can read more than the windows."""
        return self._truth.open is not None

    @property
    def stored(self) -> StoredReference | None:
        """The reference, where it is one that is kept for later."""
        kept = self._key is not None and isinstance(self.reference, StoredReference)
        return self.reference if kept and isinstance(self.reference, StoredReference) else None

    def open_model(self) -> Scorer:
        """Load the model behind it; the caller closes it."""
        assert self._truth.open is not None
        return self._truth.open(self._progress)

    def tell_other_model(self, subject: Subject) -> list[str]:
        """A remark where a bundle is seen to be of another model than the reference."""
        if subject.bundle is None:
            return []
        config, origin = self._truth.config, self._truth.origin
        if config is not None:
            differing = [
                field.name
                for field in fields(config)
                if field.name not in _NOT_OF_THE_MODEL
                and getattr(config, field.name) != getattr(subject.bundle.config, field.name)
            ]
            if differing:
                return [f"another model than the reference: differs in {', '.join(differing)}"]
        if origin is not None and origin != subject.bundle.manifest.origin:
            return [f"was made from {subject.describe().origin}, and not from the reference"]
        named = self._truth.named
        if named is not None and _is_other(named, subject.bundle.manifest.origin):
            return [
                f"was made from {subject.describe().origin}, and the reference is another: where "
                "their weights differ, so do their models, however exact the bundle is"
            ]
        return []

    def measure_perplexity(self) -> Estimate:
        """Of the windows' own tokens."""
        return estimate_perplexity([self._measure(n) for n in range(len(self._windows.chunks))])

    def save_base(self, file: Path) -> None:
        """Write the reference as a base file of llama.cpp.

        Raises:
            OSError: it cannot be written there.
        """
        windows, reference = self._windows, self.reference
        count = len(windows.chunks)
        size = measure_base_file(count, windows.length, reference.vocab_size)

        def read() -> Iterator[np.ndarray]:
            for number in range(count):
                self._progress(f"writing the base file ({_tell_size(size)})", number, count)
                yield reference.read(number)

        write_base_file(file, windows.chunks, read(), reference.vocab_size)

    def _measure(self, window: int) -> DoubleArray:
        logits = self.reference.read(window)
        targets = np.array(self._windows.targets(window), np.int64)
        if self.reference.floor is None:
            return negative_log_likelihood(logits, targets)
        # Log-probabilities already, as llama.cpp reads them.
        found: DoubleArray = -np.take_along_axis(logits, targets[:, None], 1)[:, 0].astype(float)
        return found

    def _find(self) -> Reference:
        truth, windows = self._truth, self._windows
        if truth.base is not None:
            return BaseReference(truth.base)
        if self._key is not None:
            found = find_reference(self._key, self._progress)
            if found is not None:
                self.cached = True
                return self._stack.enter_context(closing(found))
        scorer = self.open_model()
        try:
            vocab_size = scorer.config.vocab_size
            _check_vocabulary(windows, vocab_size)
            size = _tell_size(measure_reference(windows, vocab_size))
            kept = "kept in the cache" if self._key is not None else "on disk for now"
            self._progress(f"the reference takes {size}, {kept}", 0, 0)

            def answer() -> Iterator[Scored]:
                return scorer.score(list_requests(windows), self._progress)

            if self._key is not None:
                made = keep_reference(self._key, windows, vocab_size, answer, self._progress)
                return self._stack.enter_context(closing(made))
            return self._stack.enter_context(keep_for_now(windows, vocab_size, answer))
        finally:
            scorer.close()


def _tell_size(size: int) -> str:
    return f"{size / 1e9:.1f} GB" if size >= 1e9 else f"{max(1, round(size / 1e6))} MB"


def _check_vocabulary(windows: Windows, vocab_size: int) -> None:
    largest = max(max(chunk) for chunk in windows.chunks)
    if largest >= vocab_size:
        raise GenerationError(
            f"the text has token {largest} and the reference knows {vocab_size}: subject and "
            "reference are not of one model"
        )


def _is_other(named: Origin, made_from: Origin) -> bool:
    """Whether a checkpoint's origin tells that a bundle is of another one.

    A folder may hold a copy of what was exported from the Hub, and then only names can tell.
    """
    if named.kind == made_from.kind:
        return named != made_from
    names = {origin.name.rpartition("/")[2] for origin in (named, made_from)}
    return len(names) > 1 or named.adapter != made_from.adapter
