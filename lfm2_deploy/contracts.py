"""What the core asks of the parts it does not know: checkpoints, runtimes, progress.

Token ids are plain ints; logits are float32 numpy arrays; rows of a batch may have
different lengths. Nothing here imports a backend.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import numpy as np
from numpy.typing import NDArray

from lfm2_deploy.config import Lfm2Config

FloatArray = NDArray[np.float32]

# (what, done, total): called often; total is 0 while unknown.
Progress = Callable[[str, int, int], None]


def ignore_progress(what: str, done: int, total: int) -> None:
    """The `Progress` of callers who do not want to see any."""


@dataclass(frozen=True, slots=True)
class Origin:
    """Where a checkpoint came from; recorded in the bundle.

    Args:
        kind: "folder", "file" (GGUF), "hub" or "synthetic".
        name: folder or file name, Hub id (of a GGUF file "owner/name/file") or synthetic model
            name.
        revision: commit of the Hub repository, seed of a synthetic one, or "".
        adapter: name of the LoRA adapter merged in, or "".
        part: "text" for the text part of a vision or audio model, or "".
    """

    kind: str
    name: str
    revision: str = ""
    adapter: str = ""
    part: str = ""


# What a `Probe` says of a device that it had no reason to try.
NOT_RUN = "not run"


@dataclass(frozen=True, slots=True)
class Probe:
    """Whether this machine can run what a target makes.

    Args:
        available: a graph ran on the device, or what `checked` says.
        device: its name, or "" where there is none.
        reason: why it is available or not, for people, in one line.
        checked: how that is known, such as "ran a graph, every node placed there".
    """

    available: bool
    device: str
    reason: str
    checked: str


class Checkpoint(Protocol):
    """A model's weights, read one tensor at a time under canonical names."""

    @property
    def config(self) -> Lfm2Config:
        """The parsed config.json."""

    @property
    def raw_config(self) -> Mapping[str, Any]:
        """config.json as it was found."""

    @property
    def origin(self) -> Origin:
        """Where this came from."""

    @property
    def identity(self) -> str:
        """What tells this model from others without reading its weights, on this machine.

        A folder that was touched since has another one; it serves to resume an export.
        """

    @property
    def side_files(self) -> Mapping[str, Path]:
        """Tokenizer, chat template and generation config: file name -> path."""

    def read(self, name: str) -> FloatArray:
        """One tensor, as float32, in the shape `weights.list_weights` gives.

        Raises:
            CheckpointError: it is truncated or holds NaN or infinity.
        """


@dataclass(frozen=True, slots=True)
class StoredForm:
    """What the numbers of a stored tensor are.

    Args:
        label: the file format's name for it, such as "Q4_0".
        bits: of an integer, where `group` numbers share a step that float16 holds and each is
            the step times a signed integer; of a float, 16 or 32, where `group` is 0; and 0 where
            they are neither.
        group: neighbours along the last dimension that share a step; 0 for none.
    """

    label: str
    bits: int
    group: int


@runtime_checkable
class TellsForms(Protocol):
    """A `Checkpoint` whose file holds numbers that were rounded, and that says how."""

    def stored_as(self, name: str) -> StoredForm:
        """How the file stores a tensor.

        Raises:
            CheckpointError: no such tensor.
        """


@dataclass(frozen=True, slots=True)
class Capabilities:
    """What a runtime can do; `generate` asks this and never a runtime's name.

    Args:
        appends_many: several tokens can be appended to a state that is not empty. Where not,
            they are appended one by one, or the whole prompt is read anew.
        rewinds: marks and snapshots can be gone back to, exactly.
        max_batch_size: most rows in one session; 0 means no limit.
        scores_all: logits of every position can be asked for.
        max_proposal: most tokens of a row in one proposal; 0 where none can be made.
        chunk: tokens that one call of a prompt takes, where shapes are fixed: fewer cost as
            much. 0 where any number costs what it is.
        tokens_per_step: tokens of a prompt that take about as long as one token alone; decides
            which of the two it is where several cannot be appended.
        joins_rows: rows can be decoded together while they come and go: the runtime is a
            `JoinsRows`, too.
        takes_embeddings: embeddings of images or sounds can be appended in place of tokens:
            sessions are `EmbeddingSession`s.
    """

    appends_many: bool
    rewinds: bool
    max_batch_size: int
    scores_all: bool
    max_proposal: int = 0
    chunk: int = 0
    tokens_per_step: int = 16
    joins_rows: bool = False
    takes_embeddings: bool = False


@dataclass(frozen=True, slots=True)
class RuntimeInfo:
    """Which runtime this is, where it really runs, and what it can do.

    Args:
        runtime: its name.
        device: where it runs, for people.
        capabilities: what it can do.
        notes: what a user should know of this model on this device, such as why it is slow.
        driver: versions of what computes there, library and driver: what was found of a device
            holds as long as they stay.
        arithmetic: what activations are kept in: "float32", "float16", "int16" or "int8"; "" where
            that is not known.
    """

    runtime: str
    device: str
    capabilities: Capabilities
    notes: tuple[str, ...] = ()
    driver: str = ""
    arithmetic: str = ""


class Snapshot(Protocol):
    """A session's states at one moment; opaque, and valid for its own session's shape."""

    @property
    def lengths(self) -> tuple[int, ...]:
        """Tokens in each row when it was taken."""

    @property
    def size_bytes(self) -> int:
        """Memory it holds."""


@dataclass(frozen=True, slots=True)
class NamedStates:
    """A `Snapshot` of one row that any session of the same bundle can take over.

    Args:
        lengths: tokens in the row.
        arrays: state input name -> array of one row, in the state's own dtype; keys and values
            cut to the length.
    """

    lengths: tuple[int, ...]
    arrays: Mapping[str, NDArray[Any]]

    @property
    def size_bytes(self) -> int:
        """Memory it holds."""
        return sum(array.nbytes for array in self.arrays.values())


@dataclass(frozen=True, slots=True, eq=False, weakref_slot=True)
class Mark:
    """A place in a session that can be gone back to, while what lies before it stays.

    Keys and values are only ever appended, so a mark holds conv states and no more.

    Args:
        lengths: tokens in each row there.
        states: the session's own.
        size_bytes: memory it holds.
    """

    lengths: tuple[int, ...]
    states: Any
    size_bytes: int


class Session(Protocol):
    """One batch of rows and the states they have built up."""

    @property
    def batch_size(self) -> int:
        """Number of rows."""

    @property
    def capacity(self) -> int:
        """Most tokens a row can hold."""

    @property
    def lengths(self) -> tuple[int, ...]:
        """Tokens each row holds now."""

    def prefill(self, rows: Sequence[Sequence[int]]) -> FloatArray:
        """Append tokens to each row; rows may differ in length.

        Args:
            rows: B lists of token ids; an empty one leaves its row as it is.

        Returns:
            [B, V] logits after each row's last token; of an empty row, nothing of meaning.

        Raises:
            GenerationError: another number of rows, an id outside the vocabulary, or no
                token at all; nothing is appended.
            ContextOverflowError: a row would exceed the capacity; nothing is appended.
        """

    def decode(self, tokens: Sequence[int | None]) -> FloatArray:
        """Append one token to each row; None leaves a row as it is.

        Returns:
            [B, V] logits; a row given None holds nothing of meaning.

        Raises:
            GenerationError, ContextOverflowError: as `prefill`.
        """

    def score(self, rows: Sequence[Sequence[int]]) -> list[FloatArray]:
        """As `prefill`, but with logits after every token: B arrays [len(row), V].

        Raises:
            GenerationError, ContextOverflowError: as `prefill`.
        """

    def propose(self, rows: Sequence[Sequence[int]]) -> list[FloatArray]:
        """As `score`, but what is appended may be taken back: `accept` must follow.

        Args:
            rows: B lists of at most `Capabilities.max_proposal` ids.

        Raises:
            GenerationError: too many at once, or the last proposal was not accepted yet.
            ContextOverflowError: as `prefill`.
        """

    def accept(self, counts: Sequence[int]) -> None:
        """Keep of a proposal the first `counts[b]` tokens of each row, as if no more had come.

        Raises:
            GenerationError: there is no proposal, or it is shorter.
        """

    def reset(self) -> None:
        """Empty every row; marks are void."""

    def mark(self) -> Mark:
        """Note this place; cheap, and cheaper than a snapshot."""

    def rewind(self, mark: Mark) -> None:
        """Go back to a place, exactly; marks further on are void.

        Raises:
            GenerationError: it is of another session, or void.
        """

    def snapshot(self, mark: Mark | None = None) -> Snapshot:
        """Copy the states, of now or of a marked place.

        Raises:
            GenerationError: the mark is of another session, or void.
        """

    def restore(self, snapshot: Snapshot) -> None:
        """Put back a snapshot of this session, exactly; marks are void.

        Raises:
            GenerationError: it is of another session.
            ContextOverflowError: it is longer than this session's capacity.
        """


class Rows(Protocol):
    """Rows that are decoded together, and come and go between tokens.

    The weights are read once for all of them. What a row gives may differ in its last bits from
    what it gives alone: kernels add up several rows in another order than one.
    """

    @property
    def lengths(self) -> tuple[int, ...]:
        """Tokens each row holds now, in order of their places."""

    def join(self, states: Snapshot) -> int:
        """Add a row with a snapshot of one row; return its place, which is the last.

        Raises:
            GenerationError: there is no place left, or the snapshot is of another model.
        """

    def leave(self, place: int) -> Snapshot:
        """Take a row out; the last one moves to its place. Returns its states."""

    def decode(self, tokens: Sequence[int]) -> FloatArray:
        """Append one token to each row; returns logits [n, V].

        Raises:
            GenerationError: another number of tokens, or an id outside the vocabulary.
            ContextOverflowError: a row is full.
        """


class Preparer(Protocol):
    """What makes, for one machine, a copy of a bundle's weights that loads faster."""

    def prepare(self, bundle: Any, progress: Progress) -> Path:
        """Make the copy, or find it; return its folder.

        Raises:
            DiskFullError, BundleError: there is no room, or it cannot be made.
        """

    def remove(self, bundle: Any) -> bool:
        """Remove the copy; whether there was one."""

    def measure(self, folder: Path) -> int:
        """Bytes on disk."""


class Runtime(Protocol):
    """A loaded model that opens sessions; sessions share its weights."""

    @property
    def info(self) -> RuntimeInfo:
        """What this is and can do."""

    @property
    def config(self) -> Lfm2Config:
        """The model's config."""

    @property
    def context_length(self) -> int:
        """Most tokens any session may hold."""

    def open(self, batch_size: int = 1, capacity: int | None = None) -> Session:
        """A fresh session.

        Args:
            batch_size: number of rows.
            capacity: most tokens a row will hold; the context length when None.

        Raises:
            GenerationError: no rows, or the runtime was closed.
            ContextOverflowError: the capacity is not within the context.
        """

    def close(self) -> None:
        """Free the weights; sessions are unusable afterwards."""


class EmbeddingSession(Session, Protocol):
    """A session of a runtime with `Capabilities.takes_embeddings`."""

    def prefill_embeddings(self, rows: Sequence[FloatArray]) -> FloatArray:
        """As `prefill`, of embeddings: of an image, of a sound, or of tokens.

        Args:
            rows: B arrays float32 [S, H]; one with S = 0 leaves its row as it is.

        Returns:
            [B, V] logits after each row's last position; of an empty row, nothing of meaning.

        Raises:
            GenerationError: another number of rows, another shape, a number that is not finite,
                or no position at all; nothing is appended.
            ContextOverflowError: as `prefill`.
        """


class JoinableSession(Session, Protocol):
    """A session of one row whose states can go on elsewhere and come back."""

    def advance(self, snapshot: Snapshot) -> None:
        """Take over a snapshot that begins with what this session holds; marks stay valid.

        Raises:
            GenerationError: it is shorter, or of another model.
            ContextOverflowError: it is longer than this session's capacity.
        """


class JoinsRows(Protocol):
    """A `Runtime` with `Capabilities.joins_rows`; its sessions of one row are `JoinableSession`s.

    A row of such a batch is a snapshot that joins, and one that is taken over again.
    """

    def open_rows(self, most: int) -> Rows:
        """Places for `most` rows that come and go; empty ones take no memory."""
