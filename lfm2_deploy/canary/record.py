"""canary.json: a script of calls, and what the logits after each must be.

A bundle may come from anywhere, so what is read is checked before it is used. The truth is the
torch decoder's, in float32, on the weights as the bundle stores them (`exporters/canary.py`), so
that what differs is the graph, its kernels or the device.

Of the logits after a call (V numbers) a digest is kept: the likeliest 16, 48 others that are the
same everywhere, and the logarithm of the sum of all exponentials.

Version 2 knows how far each call may be off, and of each signature only the calls that show it
most, in whole units. Version 1 is read, too: its calls are held to the model's noise.
"""

from __future__ import annotations

import json
import math
import random
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lfm2_deploy.contracts import FloatArray
from lfm2_deploy.errors import BundleError
from lfm2_deploy.json_file import read_json_object
from lfm2_deploy.manifest import CANARY

SCHEMA_VERSION = 2
_READ_VERSIONS = (1, 2)
TOP, SAMPLED = 16, 48
_DIGITS = 6
_SEED = 0
# Far above what is recorded; more would not be a glance any more.
_MOST_ROWS, _MOST_CALLS, _MOST_TOKENS, _LONGEST_WORDS = 16, 64, 8192, 200
_MOST_SIGNATURES, _MOST_EXPERTS = 256, 1 << 20
# No logit is as large; squares of it are still floats.
_LARGEST = 1e30
_AGAIN = "export the model again"


@dataclass(frozen=True, slots=True)
class Digest:
    """Logits after one call.

    Args:
        logsumexp: log of the sum of their exponentials, natural.
        top_ids: the likeliest tokens, likeliest first.
        top: their logits.
        sampled: logits of the canary's `sampled_ids`.
    """

    logsumexp: float
    top_ids: tuple[int, ...]
    top: tuple[float, ...]
    sampled: tuple[float, ...]

    @property
    def margin(self) -> float:
        """By how much the likeliest token leads, in nats."""
        return self.top[0] - self.top[1] if len(self.top) > 1 else math.inf

    @property
    def spread(self) -> float:
        """Standard deviation of the sampled logits; never 0."""
        return max(float(np.std(self.sampled)), float(np.finfo(np.float32).tiny))


@dataclass(frozen=True, slots=True)
class Call:
    """Tokens to append, and what comes of them.

    Args:
        tokens: ids.
        expected: the logits after them.
        noise: largest error in several runs with activations rounded to 8 bits, as
            `Reading.error` has it: where a token may go to another expert, more than elsewhere.
            0 where it was not recorded.
    """

    tokens: tuple[int, ...]
    expected: Digest
    noise: float = 0.0


@dataclass(frozen=True, slots=True)
class Row:
    """Calls in order, from an empty state."""

    name: str
    calls: tuple[Call, ...]

    @property
    def length(self) -> int:
        """Tokens of all calls."""
        return sum(len(call.tokens) for call in self.calls)


@dataclass(frozen=True, slots=True)
class Signature:
    """What a known fault would do to the logits.

    Args:
        fault: in words that end "as if ...".
        row: the row it was computed for.
        calls: numbers of the calls that show it, from 0.
        unit: what changes are counted in.
        changes: for each of these calls, the change of the logits of its digest: top, then
            sampled.
    """

    fault: str
    row: str
    calls: tuple[int, ...]
    unit: float
    changes: tuple[tuple[float, ...], ...]


@dataclass(frozen=True, slots=True)
class Coverage:
    """Of a mixture's experts, those of all layers together.

    Args:
        experts: all.
        run: those that a token of the rows chooses.
        compared: those that the last token of a call chooses, after which logits are compared.
    """

    experts: int
    run: int
    compared: int


@dataclass(frozen=True, slots=True)
class Canary:
    """What a bundle must compute.

    Args:
        sampled_ids: tokens whose logits are in every digest.
        noise: error of this model with activations rounded to 8 bits, as `Reading.error` has it:
            the yardstick of what is usual, since models differ by ten times.
        rows: what to run.
        signatures: faults that are hard to see otherwise.
        coverage: which experts the rows reach; None for a dense model, or where it is not known.
    """

    sampled_ids: tuple[int, ...]
    noise: float
    rows: tuple[Row, ...]
    signatures: tuple[Signature, ...] = ()
    coverage: Coverage | None = None


def choose_sampled_ids(vocab_size: int) -> tuple[int, ...]:
    """The ids whose logits are always kept, in order."""
    count = min(SAMPLED, vocab_size)
    return tuple(sorted(random.Random(_SEED).sample(range(vocab_size), count)))


def digest_logits(logits: FloatArray, sampled_ids: Sequence[int]) -> Digest:
    """Logits float32 [V] -> what is kept of them."""
    wide = logits.astype(np.float64)
    highest = wide.max()
    order: NDArray[np.int64] = np.argsort(-wide, kind="stable")[:TOP]
    return Digest(
        logsumexp=_shorten(highest + np.log(np.exp(wide - highest).sum())),
        top_ids=tuple(order.tolist()),
        top=tuple(map(_shorten, wide[order])),
        sampled=tuple(map(_shorten, wide[list(sampled_ids)])),
    )


def _shorten(value: float) -> float:
    return float(f"{value:.{_DIGITS}g}")


def write_canary(canary: Canary, folder: Path) -> None:
    """Write canary.json into a folder; the same canary gives the same bytes."""
    record = {"schema_version": SCHEMA_VERSION, **asdict(canary)}
    text = json.dumps(record, separators=(",", ":"))
    (folder / CANARY).write_text(text + "\n", encoding="utf-8")


def read_canary(folder: Path, vocab_size: int, context_length: int) -> Canary:
    """Read and check canary.json.

    Args:
        folder: a bundle's.
        vocab_size: ids must be below it.
        context_length: no row may be longer.

    Raises:
        BundleError: it is absent or damaged, or does not fit the model.
    """
    file = folder / CANARY
    raw = read_json_object(file, BundleError, f"it is damaged; {_AGAIN}")
    if raw.get("schema_version") not in _READ_VERSIONS:
        raise BundleError(
            f"{file} has schema version {raw.get('schema_version')!r}, this package reads "
            f"{' and '.join(map(str, _READ_VERSIONS))}; {_AGAIN}"
        )
    try:
        canary = Canary(
            _ids(raw["sampled_ids"], vocab_size),
            _number(raw["noise"]),
            tuple(_parse_row(row, vocab_size) for row in _bounded(raw["rows"], _MOST_ROWS)),
            tuple(map(_parse_signature, _limited(raw["signatures"], _MOST_SIGNATURES))),
            _parse_coverage(raw.get("coverage")),
        )
        _check(canary, context_length)
    except (LookupError, TypeError, ValueError, AttributeError) as error:
        reason = f"no {error}" if isinstance(error, KeyError) else str(error)
        raise BundleError(f"{file} is damaged ({reason}); {_AGAIN}") from error
    return canary


def _parse_row(raw: Any, vocab_size: int) -> Row:
    calls = tuple(_parse_call(call, vocab_size) for call in _bounded(raw["calls"], _MOST_CALLS))
    name = raw["name"]
    if not isinstance(name, str) or not name.isidentifier():
        raise ValueError("a row has no name")
    return Row(name, calls)


def _parse_signature(raw: Any) -> Signature:
    fault, row = raw["fault"], raw["row"]
    if not isinstance(fault, str) or not fault.isprintable() or len(fault) > _LONGEST_WORDS:
        raise ValueError("a fault has no name")
    if not isinstance(row, str):
        raise ValueError("a fault has no row")
    changes = tuple(
        tuple(map(_checked, _bounded(change, TOP + SAMPLED)))
        for change in _bounded(raw["changes"], _MOST_CALLS)
    )
    # Version 1 has all calls, in logits.
    calls = _ids(raw.get("calls", [*range(len(changes))]), _MOST_CALLS)
    return Signature(fault, row, calls, _number(raw.get("unit", 1.0)), changes)


def _parse_coverage(raw: Any) -> Coverage | None:
    if raw is None:
        return None
    counts = [raw[name] for name in ("experts", "run", "compared")]
    if any(type(n) is not int or not 0 <= n <= _MOST_EXPERTS for n in counts):
        raise ValueError("experts are not counted in whole numbers")
    return Coverage(*counts)


def _parse_call(raw: Any, vocab_size: int) -> Call:
    expected = raw["expected"]
    digest = Digest(
        _number(expected["logsumexp"]),
        _ids(expected["top_ids"], vocab_size),
        tuple(map(_number, _bounded(expected["top"], TOP))),
        tuple(map(_number, _bounded(expected["sampled"], SAMPLED))),
    )
    return Call(_ids(raw["tokens"], vocab_size), digest, _number(raw.get("noise", 0.0)))


def _check(canary: Canary, context_length: int) -> None:
    if not canary.noise > 0:
        raise ValueError("its noise is none")
    calls = {row.name: row.calls for row in canary.rows}
    for signature in canary.signatures:
        sizes = [len(change) for change in signature.changes]
        found = [calls[signature.row][number].expected for number in signature.calls]
        if sizes != [len(digest.top) + len(canary.sampled_ids) for digest in found]:
            raise ValueError("a fault's changes are not whole")
    for row in canary.rows:
        if row.length > context_length:
            raise ValueError(f"row {row.name} is longer than the context")
        for call in row.calls:
            expected = call.expected
            if len(expected.top) != len(expected.top_ids):
                raise ValueError("its digests are not whole")
            if expected.logsumexp < max(expected.top) - 1:
                raise ValueError("a token is likelier than all together")
            if len(expected.sampled) != len(canary.sampled_ids):
                raise ValueError("its digests are not whole")


def _bounded(value: Any, most: int) -> list[Any]:
    if not isinstance(value, list) or not 1 <= len(value) <= most:
        raise ValueError("a list of it has another length than can be")
    return value


def _limited(value: Any, most: int) -> list[Any]:
    if not isinstance(value, list) or len(value) > most:
        raise ValueError("a list of it is longer than can be")
    return value


def _ids(value: Any, vocab_size: int) -> tuple[int, ...]:
    for token in _bounded(value, _MOST_TOKENS):
        if type(token) is not int or not 0 <= token < vocab_size:
            raise ValueError(f"a token id is not in 0 to {vocab_size - 1}")
    return tuple(value)


def _checked(value: Any) -> float:
    """A number as it is, so that a whole one is written as one again."""
    _number(value)
    number: float = value
    return number


def _number(value: Any) -> float:
    # `not` refuses NaN, too; integers of JSON may be larger than any float.
    if type(value) not in (int, float) or not abs(value) <= _LARGEST:
        raise ValueError("a logit is no finite number")
    return float(value)
