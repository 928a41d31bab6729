"""What every runtime refuses, in the same words."""

from __future__ import annotations

from collections.abc import Sequence, Sized

import numpy as np

from lfm2_deploy.contracts import FloatArray
from lfm2_deploy.errors import ContextOverflowError, GenerationError


def check_session(batch_size: int, capacity: int | None, context_length: int) -> int:
    """The capacity to open a session with.

    Args:
        batch_size: number of rows asked for.
        capacity: most tokens a row will hold; the context length when None.
        context_length: most tokens any session may hold.

    Raises:
        GenerationError: there are no rows.
        ContextOverflowError: the capacity is not within the context.
    """
    if batch_size < 1:
        raise GenerationError(f"batch_size is {batch_size}, expected at least 1")
    capacity = context_length if capacity is None else capacity
    if not 1 <= capacity <= context_length:
        raise ContextOverflowError(
            f"a capacity of {capacity} tokens is not within this model's context of "
            f"{context_length}; shorten the prompt, or export with a longer --context"
        )
    return capacity


def check_rows(
    rows: Sequence[Sequence[int]], lengths: Sequence[int], capacity: int, vocab_size: int
) -> None:
    """Refuse tokens that cannot be appended.

    Args:
        rows: new tokens of each row; empty ones are left as they are.
        lengths: tokens each row holds already.
        capacity: most tokens a row can hold.
        vocab_size: ids are below it.

    Raises:
        GenerationError: another number of rows, or an id outside the vocabulary.
        ContextOverflowError: a row would exceed the capacity.
    """
    if len(rows) != len(lengths):
        raise GenerationError(f"{len(rows)} rows were given, expected {len(lengths)}")
    for index, (row, held) in enumerate(zip(rows, lengths, strict=True)):
        stray = next((token for token in row if not 0 <= token < vocab_size), None)
        if stray is not None:
            raise GenerationError(f"token id {stray} is not in 0 to {vocab_size - 1}")
        _check_room(index, held, len(row), capacity)


def check_embeddings(
    rows: Sequence[FloatArray], lengths: Sequence[int], capacity: int, hidden_size: int
) -> list[FloatArray]:
    """Refuse embeddings that cannot be appended.

    Args:
        rows: new positions of each row, [S, H]; empty ones are left as they are.
        lengths: tokens each row holds already.
        capacity: most tokens a row can hold.
        hidden_size: H.

    Returns:
        The same as contiguous float32.

    Raises:
        GenerationError: another number of rows, another shape, no floats, a number that is not
            finite, or nothing at all.
        ContextOverflowError: a row would exceed the capacity.
    """
    if len(rows) != len(lengths):
        raise GenerationError(f"{len(rows)} rows were given, expected {len(lengths)}")
    taken = []
    for index, (row, held) in enumerate(zip(rows, lengths, strict=True)):
        array = np.asarray(row)
        if array.dtype.kind != "f" or array.ndim != 2 or array.shape[1] != hidden_size:
            raise GenerationError(
                f"row {index} is {array.dtype}{list(array.shape)}, expected floats "
                f"[positions, {hidden_size}], as wide as the model's embeddings"
            )
        if not np.isfinite(array).all():
            raise GenerationError(
                f"row {index} holds numbers that are not finite, which would stay in the states: "
                "look at the program that made these embeddings"
            )
        _check_room(index, held, len(array), capacity)
        taken.append(np.ascontiguousarray(array, np.float32))
    check_some_tokens(taken)
    return taken


def _check_room(index: int, held: int, new: int, capacity: int) -> None:
    if held + new > capacity:
        raise ContextOverflowError(
            f"row {index} holds {held} tokens and {new} more do not fit this session's "
            f"{capacity}; shorten the prompt or ask for fewer new tokens"
        )


def check_some_tokens(rows: Sequence[Sized]) -> None:
    """Refuse to append nothing at all.

    Raises:
        GenerationError: every row is empty.
    """
    if not any(len(row) for row in rows):
        raise GenerationError("there is no token to append; give at least one row some")


def check_proposal(rows: Sequence[Sequence[int]], most: int) -> None:
    """Refuse more tokens than can be taken back, and none.

    Raises:
        GenerationError: a row is longer than `most`, or every row is empty.
    """
    longest = max(map(len, rows), default=0)
    if longest > most:
        raise GenerationError(
            f"{longest} tokens were proposed and this runtime can take back {most} at most; "
            "propose fewer, or append them for good"
        )
    check_some_tokens(rows)


def check_counts(counts: Sequence[int], proposed: Sequence[int]) -> None:
    """Refuse to accept what was not proposed.

    Raises:
        GenerationError: another number of rows, or more tokens than a row was given.
    """
    if len(counts) != len(proposed) or any(
        not 0 <= count <= given for count, given in zip(counts, proposed, strict=True)
    ):
        raise GenerationError(
            f"{list(counts)} tokens cannot be accepted of a proposal of {list(proposed)}"
        )
