"""A runtime without a model, for tests: its logits are a function of the tokens so far.

It keeps every promise of `contracts.Session`, errors included, and can be told to lack
any capability.
"""

from __future__ import annotations

import zlib
from collections.abc import Callable, Mapping, Sequence

import numpy as np

from lfm2_deploy.config import Lfm2Config, parse_config
from lfm2_deploy.contracts import Capabilities, FloatArray, Mark, RuntimeInfo, Snapshot
from lfm2_deploy.errors import ContextOverflowError, GenerationError
from lfm2_deploy.session_checks import (
    check_counts,
    check_proposal,
    check_rows,
    check_session,
    check_some_tokens,
)
from runtimes.fake_rows import FakeRows, FakeSnapshot
from runtimes.marks import Marks

# The tokens of a row so far -> [V] logits of the next.
NextLogits = Callable[[Sequence[int]], FloatArray]

ALL_CAPABILITIES = Capabilities(
    appends_many=True, rewinds=True, max_batch_size=0, scores_all=True, max_proposal=16
)


def hash_logits(vocab_size: int, scale: float = 3.0) -> NextLogits:
    """Random-looking logits that depend on every token so far and on nothing else.

    Args:
        vocab_size: V.
        scale: standard deviation of the logits.
    """

    def next_logits(history: Sequence[int]) -> FloatArray:
        seed = zlib.crc32(np.asarray(history, dtype=np.int64).tobytes())
        normal = np.random.default_rng(seed).standard_normal(vocab_size)
        return (normal * scale).astype(np.float32)

    return next_logits


def scripted_logits(
    vocab_size: int, replies: Mapping[tuple[int, ...], Sequence[int]], then: int
) -> NextLogits:
    """Logits whose maximum follows a script.

    Args:
        vocab_size: V.
        replies: prompt -> the tokens that follow it.
        then: the token after a reply's end, and after anything that is not scripted.
    """

    def next_logits(history: Sequence[int]) -> FloatArray:
        logits = np.zeros(vocab_size, dtype=np.float32)
        logits[_next_in_script(tuple(history), replies, then)] = 10.0
        return logits

    return next_logits


def _next_in_script(
    history: tuple[int, ...], replies: Mapping[tuple[int, ...], Sequence[int]], then: int
) -> int:
    for prompt, reply in replies.items():
        done = history[len(prompt) :]
        if history[: len(prompt)] == prompt and done == tuple(reply[: len(done)]):
            return reply[len(done)] if len(done) < len(reply) else then
    return then


class FakeSession:
    """Rows that remember their tokens.

    `calls` lists what was asked of it: ("prefill", rows), ("decode", tokens), ...
    """

    def __init__(self, runtime: FakeRuntime, batch_size: int, capacity: int) -> None:
        self._runtime = runtime
        self._rows: list[list[int]] = [[] for _ in range(batch_size)]
        self._capacity = capacity
        self.calls: list[tuple[str, object]] = []
        self._marks = Marks()
        self._proposal: tuple[tuple[int, ...], tuple[int, ...]] | None = None

    @property
    def batch_size(self) -> int:
        """Number of rows."""
        return len(self._rows)

    @property
    def capacity(self) -> int:
        """Most tokens a row can hold."""
        return self._capacity

    @property
    def lengths(self) -> tuple[int, ...]:
        """Tokens each row holds now."""
        return tuple(len(row) for row in self._rows)

    def prefill(self, rows: Sequence[Sequence[int]]) -> FloatArray:
        """See `contracts.Session.prefill`."""
        self.calls.append(("prefill", [list(row) for row in rows]))
        parts = self._append(rows)
        return np.stack([part[-1] if len(part) else self._unused() for part in parts])

    def decode(self, tokens: Sequence[int | None]) -> FloatArray:
        """See `contracts.Session.decode`; a row given None gets NaN."""
        self.calls.append(("decode", list(tokens)))
        self._check([[] if token is None else [token] for token in tokens])
        return np.stack(
            [
                self._unused() if token is None else self._step(row, token)
                for row, token in zip(self._rows, tokens, strict=True)
            ]
        )

    def score(self, rows: Sequence[Sequence[int]]) -> list[FloatArray]:
        """See `contracts.Session.score`."""
        self.calls.append(("score", [list(row) for row in rows]))
        self._require(self._capabilities.scores_all, "score every position")
        return self._append(rows)

    def propose(self, rows: Sequence[Sequence[int]]) -> list[FloatArray]:
        """See `contracts.Session.propose`."""
        self.calls.append(("propose", [list(row) for row in rows]))
        check_proposal(rows, self._capabilities.max_proposal)
        before = self.lengths
        logits = self._append(rows)
        self._proposal = before, tuple(len(row) for row in rows)
        return logits

    def accept(self, counts: Sequence[int]) -> None:
        """See `contracts.Session.accept`."""
        self.calls.append(("accept", list(counts)))
        if self._proposal is None:
            raise GenerationError("there is no proposal to accept: propose tokens first")
        before, proposed = self._proposal
        check_counts(counts, proposed)
        self._proposal = None
        for row, held, count in zip(self._rows, before, counts, strict=True):
            del row[held + count :]

    def reset(self) -> None:
        """See `contracts.Session.reset`."""
        self.calls.append(("reset", None))
        self._forget()
        self._rows = [[] for _ in self._rows]

    def mark(self) -> Mark:
        """See `contracts.Session.mark`."""
        self._require(self._capabilities.rewinds, "set marks")
        self._check_settled()
        return self._marks.add(Mark(self.lengths, None, 0))

    def rewind(self, mark: Mark) -> None:
        """See `contracts.Session.rewind`."""
        self.calls.append(("rewind", mark.lengths))
        self._marks.check(mark)
        self._proposal = None
        for row, length in zip(self._rows, mark.lengths, strict=True):
            del row[length:]
        self._marks.cut(mark.lengths)

    def snapshot(self, mark: Mark | None = None) -> FakeSnapshot:
        """See `contracts.Session.snapshot`."""
        self._require(self._capabilities.rewinds, "take snapshots")
        if mark is None:
            self._check_settled()
        else:
            self._marks.check(mark)
        lengths = self.lengths if mark is None else mark.lengths
        rows = zip(self._rows, lengths, strict=True)
        return FakeSnapshot(tuple(tuple(row[:length]) for row, length in rows))

    def restore(self, snapshot: Snapshot) -> None:
        """See `contracts.Session.restore`."""
        self._require(self._capabilities.rewinds, "restore snapshots")
        if not isinstance(snapshot, FakeSnapshot) or len(snapshot.lengths) != self.batch_size:
            raise GenerationError(
                f"a {type(snapshot).__name__} of {len(snapshot.lengths)} rows cannot be restored "
                f"to a fake session of {self.batch_size}: restore the session it was taken of"
            )
        if max(snapshot.lengths) > self._capacity:
            raise ContextOverflowError(
                f"the snapshot holds {max(snapshot.lengths)} tokens, more than this session's "
                f"capacity of {self._capacity}: restore the session it was taken of"
            )
        self._forget()
        self._rows = [list(history) for history in snapshot.histories]

    def advance(self, snapshot: Snapshot) -> None:
        """See `contracts.JoinableSession.advance`."""
        if not isinstance(snapshot, FakeSnapshot) or len(snapshot.lengths) != self.batch_size:
            raise GenerationError("this snapshot is of another session: restore it there")
        for row, history in zip(self._rows, snapshot.histories, strict=True):
            if tuple(row) != history[: len(row)]:
                raise GenerationError("this snapshot does not begin with what the session holds")
            row[:] = history

    def _forget(self) -> None:
        self._marks.clear()
        self._proposal = None

    def _check_settled(self) -> None:
        if self._proposal is not None:
            raise GenerationError("the last proposal was not accepted: call accept first")

    @property
    def _capabilities(self) -> Capabilities:
        return self._runtime.info.capabilities

    def _append(self, rows: Sequence[Sequence[int]]) -> list[FloatArray]:
        check_some_tokens(rows)
        if any(self._rows) and any(len(row) > 1 for row in rows):
            self._require(self._capabilities.appends_many, "append several tokens at once")
        self._check(rows)
        return [
            np.stack([self._step(row, token) for token in new]) if len(new) else self._nothing()
            for row, new in zip(self._rows, rows, strict=True)
        ]

    def _step(self, row: list[int], token: int) -> FloatArray:
        row.append(token)
        return self._runtime.next_logits(tuple(row))

    def _check(self, rows: Sequence[Sequence[int]]) -> None:
        self._runtime.check_open()
        self._check_settled()
        check_rows(rows, self.lengths, self._capacity, self._runtime.config.vocab_size)

    def _unused(self) -> FloatArray:
        """Logits of a row that got no token: NaN, so that a test sees them used."""
        return np.full(self._runtime.config.vocab_size, np.nan, dtype=np.float32)

    def _nothing(self) -> FloatArray:
        return np.zeros((0, self._runtime.config.vocab_size), np.float32)

    def _require(self, able: bool, what: str) -> None:
        if not able:
            raise GenerationError(f"this runtime cannot {what}: use one that can")


class FakeRuntime:
    """Opens `FakeSession`s; `sessions` lists them."""

    def __init__(
        self,
        next_logits: NextLogits,
        *,
        vocab_size: int,
        context_length: int = 64,
        eos_token_ids: Sequence[int] = (7,),
        capabilities: Capabilities = ALL_CAPABILITIES,
        driver: str = "fake 1.0",
    ) -> None:
        """Make a runtime.

        Args:
            next_logits: a row's tokens so far -> [V] float32 logits.
            vocab_size: V.
            context_length: most tokens a session may hold.
            eos_token_ids: for the config.
            capabilities: what to admit to; the rest raises GenerationError.
            driver: as `RuntimeInfo` has it.
        """
        self.next_logits = next_logits
        self._config = tiny_config(vocab_size, context_length, eos_token_ids)
        self._info = RuntimeInfo(
            "fake", "nowhere", capabilities, driver=driver, arithmetic="float32"
        )
        self.sessions: list[FakeSession] = []
        self.rows: list[FakeRows] = []
        self.closed = False

    @property
    def info(self) -> RuntimeInfo:
        """See `contracts.Runtime.info`."""
        return self._info

    @property
    def config(self) -> Lfm2Config:
        """See `contracts.Runtime.config`."""
        return self._config

    @property
    def context_length(self) -> int:
        """See `contracts.Runtime.context_length`."""
        return self._config.max_position_embeddings

    def open(self, batch_size: int = 1, capacity: int | None = None) -> FakeSession:
        """See `contracts.Runtime.open`."""
        self.check_open()
        most = self._info.capabilities.max_batch_size
        if most and batch_size > most:
            raise GenerationError(f"a session of {batch_size} rows exceeds this runtime's {most}")
        capacity = check_session(batch_size, capacity, self.context_length)
        self.sessions.append(FakeSession(self, batch_size, capacity))
        return self.sessions[-1]

    def open_rows(self, most: int) -> FakeRows:
        """See `contracts.JoinsRows`."""
        self.check_open()
        self.rows.append(FakeRows(self, most))
        return self.rows[-1]

    def close(self) -> None:
        """See `contracts.Runtime.close`."""
        self.closed = True

    def check_open(self) -> None:
        """Refuse work after `close`.

        Raises:
            GenerationError: the runtime was closed.
        """
        if self.closed:
            raise GenerationError("this runtime is closed: load the model again")


def tiny_config(vocab_size: int, context_length: int, eos_token_ids: Sequence[int]) -> Lfm2Config:
    """The smallest config the family allows, for runtimes that have no weights."""
    return parse_config(
        {
            "model_type": "lfm2",
            "vocab_size": vocab_size,
            "hidden_size": 8,
            "num_hidden_layers": 2,
            "layer_types": ["conv", "full_attention"],
            "num_attention_heads": 2,
            "num_key_value_heads": 1,
            "block_auto_adjust_ff_dim": False,
            "intermediate_size": 16,
            "conv_L_cache": 3,
            "norm_eps": 1e-5,
            "rope_theta": 10000.0,
            "max_position_embeddings": context_length,
            "tie_word_embeddings": True,
            "bos_token_id": 1,
            "eos_token_id": list(eos_token_ids),
            "pad_token_id": 0,
        }
    )
