"""A checkpoint through transformers' own class, as a Runtime: others' word against ours.

Eager attention, float32, on the CPU. It gives logits, not the states in our layout, and takes
nothing back.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
import transformers
from transformers.utils import logging

from lfm2_deploy.config import Lfm2Config, parse_config, read_config
from lfm2_deploy.contracts import Capabilities, FloatArray, Mark, RuntimeInfo, Snapshot
from lfm2_deploy.errors import CheckpointError, GenerationError
from lfm2_deploy.session_checks import check_rows, check_session, check_some_tokens

VERSION = transformers.__version__
# As Python's own logging has it.
_ERRORS_ONLY = 40


def load(model: str) -> TransformersRuntime:
    """Load a model with transformers.

    Args:
        model: a folder or Hub id, as `from_pretrained` takes it.

    Raises:
        CheckpointError: transformers cannot load it.
    """
    try:
        with _quietly():
            loaded = transformers.AutoModelForCausalLM.from_pretrained(
                model, dtype=torch.float32, attn_implementation="eager", trust_remote_code=False
            )
    except (OSError, ValueError, KeyError, RuntimeError) as error:
        reason = str(error).strip().splitlines()[0]
        raise CheckpointError(
            f"transformers {VERSION} cannot load {model!r}: {reason}; give a folder or Hub id of "
            "an LFM2 model in transformers' form"
        ) from error
    return TransformersRuntime(loaded.train(False), _find_config(loaded, model))


def _find_config(loaded: Any, model: str) -> Lfm2Config:
    folder = Path(model)
    if folder.is_dir():
        return read_config(folder)
    return parse_config(loaded.config.to_dict())


class TransformersRuntime:
    """`contracts.Runtime` on a model of transformers."""

    def __init__(self, model: Any, config: Lfm2Config) -> None:
        self.model, self.config = model, config
        self.context_length = config.max_position_embeddings
        # A prompt is read in one piece, as its users do; then its tokens one by one.
        can = Capabilities(appends_many=False, rewinds=False, max_batch_size=1, scores_all=True)
        self.info = RuntimeInfo(
            "transformers",
            f"cpu (transformers {VERSION}, eager)",
            can,
            driver=f"torch {torch.__version__}",
            arithmetic="float32",
        )

    def open(self, batch_size: int = 1, capacity: int | None = None) -> TransformersSession:
        """A fresh session of one row; see `contracts.Runtime.open`."""
        if batch_size != 1:
            raise GenerationError("transformers is asked for one row at a time: open one")
        return TransformersSession(self, check_session(1, capacity, self.context_length))

    def close(self) -> None:
        """Free the weights."""
        self.model = None


class TransformersSession:
    """`contracts.Session` of one row, over the cache that the model itself makes."""

    batch_size = 1

    def __init__(self, runtime: TransformersRuntime, capacity: int) -> None:
        self._runtime, self.capacity = runtime, capacity
        self.reset()

    @property
    def lengths(self) -> tuple[int, ...]:
        """Tokens the row holds now."""
        return (len(self._tokens),)

    def reset(self) -> None:
        """Empty the row."""
        self._tokens: list[int] = []
        self._cache: Any = None

    def prefill(self, rows: Sequence[Sequence[int]]) -> FloatArray:
        """Append tokens; see `contracts.Session.prefill`."""
        return self.score(rows)[0][-1:]

    def decode(self, tokens: Sequence[int | None]) -> FloatArray:
        """Append one token; see `contracts.Session.decode`."""
        return self.prefill([[] if token is None else [token] for token in tokens])

    @torch.inference_mode()
    def score(self, rows: Sequence[Sequence[int]]) -> list[FloatArray]:
        """Append tokens, with logits after each; see `contracts.Session.score`."""
        check_rows(rows, self.lengths, self.capacity, self._runtime.config.vocab_size)
        check_some_tokens(rows)
        with _quietly():
            given = self._runtime.model(
                input_ids=torch.tensor([list(rows[0])]), cache=self._cache, use_cache=True
            )
        self._cache = given.cache
        self._tokens += rows[0]
        logits: FloatArray = given.logits[0].float().numpy()
        return [logits]

    def propose(self, rows: Sequence[Sequence[int]]) -> list[FloatArray]:
        """See `contracts.Session.propose`."""
        raise _refuse("propose")

    def accept(self, counts: Sequence[int]) -> None:
        """See `contracts.Session.accept`."""
        raise _refuse("accept")

    def mark(self) -> Mark:
        """See `contracts.Session.mark`."""
        raise _refuse("mark")

    def rewind(self, mark: Mark) -> None:
        """See `contracts.Session.rewind`."""
        raise _refuse("rewind")

    def snapshot(self, mark: Mark | None = None) -> Snapshot:
        """See `contracts.Session.snapshot`."""
        raise _refuse("snapshot")

    def restore(self, snapshot: Snapshot) -> None:
        """See `contracts.Session.restore`."""
        raise _refuse("restore")


@contextmanager
def _quietly() -> Iterator[None]:
    """Without transformers' progress bars and advice on faster kernels: ours are enough."""
    told: Any = logging  # partly untyped
    before, bars = told.get_verbosity(), told.is_progress_bar_enabled()
    told.set_verbosity(_ERRORS_ONLY)
    told.disable_progress_bar()
    try:
        yield
    finally:
        told.set_verbosity(before)
        if bars:
            told.enable_progress_bar()


def _refuse(what: str) -> GenerationError:
    return GenerationError(f"a session of transformers cannot {what}: it takes nothing back")
