"""Logits -> the next token.

Enters: float32 logits [V] of one row. Leaves: a token id, and the model's
log-probabilities where asked for. The filters are pure functions and run in the order
of transformers' `generate`. Knows nothing of batches, sessions or text.

Source: transformers 5.24, `generation/logits_process.py` and
`GenerationMixin._get_logits_processor`.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from lfm2_deploy.contracts import FloatArray
from lfm2_deploy.errors import GenerationError

IdArray = NDArray[np.int64]

_DROPPED = np.float32(-np.inf)


@dataclass(frozen=True, slots=True)
class SamplingOptions:
    """How to choose a token; the names are Hugging Face's, and the default is greedy.

    Args:
        temperature: divides the logits; 0 takes the likeliest token, and then only
            `repetition_penalty` of the other options matters.
        top_k: keep the k likeliest tokens and their ties; 0 keeps all.
        top_p: keep the fewest tokens whose probabilities reach p; 1 keeps all.
        min_p: keep tokens at least this fraction as likely as the likeliest; 0 keeps all.
        repetition_penalty: weakens tokens already in prompt or answer; 1 leaves them.
        seed: of the random numbers; None draws a fresh one.

    Raises:
        GenerationError: a value is out of range.
    """

    temperature: float = 0.0
    top_k: int = 0
    top_p: float = 1.0
    min_p: float = 0.0
    repetition_penalty: float = 1.0
    seed: int | None = None

    def __post_init__(self) -> None:
        for name, low, high, expected in (
            ("temperature", 0.0, 1e9, "a number from 0 (greedy) to 1e9"),
            ("top_p", 1e-9, 1.0, "a number above 0 and up to 1 (off)"),
            ("min_p", 0.0, 1.0, "a number from 0 (off) to 1"),
            ("repetition_penalty", 1e-9, 1e9, "a number above 0 and up to 1e9; 1 is off"),
        ):
            value = getattr(self, name)
            real = isinstance(value, int | float) and not isinstance(value, bool)
            if not real or not low <= value <= high:
                raise GenerationError(f"{name} is {value!r}, expected {expected}")
        if not is_count(self.top_k):
            raise GenerationError(f"top_k is {self.top_k!r}, expected an integer from 0 (off)")
        if self.seed is not None and not is_count(self.seed):
            raise GenerationError(f"seed is {self.seed!r}, expected an integer from 0, or None")


@dataclass(frozen=True, slots=True)
class TokenLogprobs:
    """What the model itself thought of a token, before penalties and filters.

    Args:
        token_id: the token chosen.
        logprob: its natural log-probability.
        top: the likeliest tokens and theirs, likeliest first.
    """

    token_id: int
    logprob: float
    top: tuple[tuple[int, float], ...]


class Sampler:
    """Chooses the tokens of one row.

    A row's random numbers come from the seed alone, whatever its place in a batch: the
    same prompt and seed give the same answer alone and beside others. For several
    different answers to one prompt, vary the seed.
    """

    def __init__(self, options: SamplingOptions, prompt: Sequence[int]) -> None:
        """Begin a row.

        Args:
            options: how to choose.
            prompt: the row's ids so far; the repetition penalty counts them as seen.
        """
        self._options = options
        self._random = np.random.default_rng(options.seed)
        self._seen = np.unique(np.asarray(prompt, dtype=np.int64))

    def sample(self, logits: FloatArray) -> int:
        """Choose a token and remember it as seen.

        Args:
            logits: float32 [V]; not changed.

        Raises:
            GenerationError: the logits hold NaN or +infinity, or nothing above -infinity.
        """
        if not np.isfinite(logits.max()):  # max lets NaN through
            raise GenerationError(
                f"the model's logits are not finite (their maximum is {logits.max()}); its "
                "precision may be too low for this device: try another target or precision"
            )
        kept = filter_logits(logits, self._options, self._seen)
        token_id = int(kept.argmax()) if self._options.temperature == 0 else self._draw(kept)
        self._remember(token_id)
        return token_id

    def _draw(self, logits: FloatArray) -> int:
        ids = np.flatnonzero(logits != _DROPPED)
        bounds = np.exp(logits[ids] - logits.max()).cumsum(dtype=np.float64)
        # side="right": a draw of exactly 0 must not land on a token of weight 0.
        place = int(np.searchsorted(bounds, self._random.random() * bounds[-1], side="right"))
        return int(ids[min(place, len(ids) - 1)])

    def _remember(self, token_id: int) -> None:
        place = int(np.searchsorted(self._seen, token_id))
        if place == len(self._seen) or self._seen[place] != token_id:
            self._seen = np.insert(self._seen, place, token_id)


def filter_logits(logits: FloatArray, options: SamplingOptions, seen: IdArray) -> FloatArray:
    """Apply penalty, temperature and filters, in that order.

    Args:
        logits: float32 [V]; not changed.
        options: those that are off cost nothing; temperature 0 applies the penalty alone.
        seen: int64 [n] distinct ids of prompt and answer so far.

    Returns:
        float32 [V]; tokens filtered out are -inf. May be `logits` itself.
    """
    if options.repetition_penalty != 1:
        logits = apply_repetition_penalty(logits, seen, options.repetition_penalty)
    if options.temperature == 0:
        return logits
    if options.temperature != 1:
        logits = apply_temperature(logits, options.temperature)
    if options.top_k:
        logits = keep_top_k(logits, options.top_k)
    if options.top_p < 1:
        logits = keep_top_p(logits, options.top_p)
    if options.min_p:
        logits = keep_min_p(logits, options.min_p)
    return logits


def apply_repetition_penalty(logits: FloatArray, seen: IdArray, penalty: float) -> FloatArray:
    """Weaken tokens already seen: divide logits above 0, multiply those below.

    Args:
        logits: float32 [V].
        seen: int64 [n] distinct ids; those from V on are ignored.
        penalty: above 1 discourages, below 1 encourages.
    """
    penalized = logits.copy()
    ids = seen[seen < len(logits)]
    scores = logits[ids]
    penalized[ids] = np.where(scores < 0, scores * penalty, scores / penalty)
    return penalized


def apply_temperature(logits: FloatArray, temperature: float) -> FloatArray:
    """Divide logits, float32 [V], by a temperature above 0."""
    # Measured from the maximum, a tiny temperature sends the others to -inf, not all to +inf.
    with np.errstate(over="ignore"):
        scaled: FloatArray = (logits - logits.max()) / np.float32(max(temperature, 1e-30))
    return scaled


def keep_top_k(logits: FloatArray, k: int) -> FloatArray:
    """Keep the k largest of float32 [V]; ties with the k-th are kept too."""
    if k >= len(logits):
        return logits
    threshold = np.partition(logits, len(logits) - k)[len(logits) - k]
    return np.where(logits < threshold, _DROPPED, logits)


def keep_top_p(logits: FloatArray, p: float) -> FloatArray:
    """Keep the fewest tokens of float32 [V] whose probabilities reach `p`, at least one.

    The token that crosses the threshold is kept.
    """
    weights = np.exp(logits - logits.max())
    # Sums are float64: in float32 a long sum would lose the small weights.
    total = weights.sum(dtype=np.float64)
    # The smallest tokens that together weigh at most 1-p go. Those below (1-p)/V are
    # among them, however many there are: leaving them out spares sorting the vocabulary.
    candidates = np.flatnonzero(weights >= total * (1 - p) / len(weights))
    ascending = candidates[np.argsort(weights[candidates], kind="stable")]
    growing = weights[ascending].cumsum(dtype=np.float64)
    below = total - growing[-1] + growing <= total * (1 - p)
    below[-1] = False
    kept = ascending[~below]
    filtered = np.full_like(logits, _DROPPED)
    filtered[kept] = logits[kept]
    return filtered


def keep_min_p(logits: FloatArray, min_p: float) -> FloatArray:
    """Keep tokens of float32 [V] at least `min_p` times as likely as the likeliest."""
    threshold = logits.max() + np.float32(math.log(min_p))
    return np.where(logits < threshold, _DROPPED, logits)


def measure_logprobs(logits: FloatArray, token_id: int, top: int) -> TokenLogprobs:
    """The model's log-probabilities of a token and of the likeliest ones.

    They are the log-softmax of the model's logits: no penalty, temperature or filter.

    Args:
        logits: float32 [V] as the model gave them.
        token_id: the token chosen.
        top: how many of the likeliest to list; 0 lists none.
    """
    largest = float(logits.max())
    # 65,536 terms are summed in float64: in float32 the sum would lose its last digits.
    log_total = largest + math.log(np.exp(logits - largest, dtype=np.float64).sum())
    ids = _likeliest(logits, min(top, len(logits)))
    return TokenLogprobs(
        token_id=token_id,
        logprob=float(logits[token_id]) - log_total,
        top=tuple((int(i), float(logits[i]) - log_total) for i in ids),
    )


def _likeliest(logits: FloatArray, count: int) -> IdArray:
    """Ids of the `count` largest, largest first; of equals, the lower id first."""
    if count == 0:
        return np.empty(0, dtype=np.int64)
    ids = np.flatnonzero(logits >= np.partition(logits, len(logits) - count)[len(logits) - count])
    return ids[np.argsort(-logits[ids], kind="stable")][:count]


def is_count(value: object) -> bool:
    """Whether a value is an integer from 0 (and not a bool)."""
    return isinstance(value, int) and not isinstance(value, bool) and value >= 0
