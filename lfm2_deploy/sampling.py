"""Logits -> the next token.

Enters: float32 logits [V] of one row. Leaves: a token id, and the model's
log-probabilities where asked for. The filters are pure functions and run in the order
of transformers' `generate`: bias, repetition penalty, [frequency and presence penalties,]
temperature, top_k, top_p, min_p. What transformers has not stands where vLLM has it: right
after the repetition penalty. Whatever forbids tokens comes before all of them, so that the
filters choose among what is allowed; since bias and penalties treat each token by itself,
that is the same as after these, where transformers has it. Knows nothing of batches,
sessions or text.

Source: transformers 5.24, `generation/logits_process.py` and
`GenerationMixin._get_logits_processor`; vLLM, `v1/sample/sampler.py`; OpenAI's API reference,
`presence_penalty`, `frequency_penalty` and `logit_bias` of chat completions.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping, Sequence
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
        temperature: divides the logits; 0 takes the likeliest token, and then only penalties
            and `logit_bias` of the other options matter.
        top_k: keep the k likeliest tokens and their ties; 0 keeps all.
        top_p: keep the fewest tokens whose probabilities reach p; 1 keeps all.
        min_p: keep tokens at least this fraction as likely as the likeliest; 0 keeps all.
        repetition_penalty: weakens tokens already in prompt or answer; 1 leaves them.
        presence_penalty: taken off the logits of tokens already in the answer; 0 is off.
        frequency_penalty: the same, for each time they are in the answer; 0 is off.
        logit_bias: (token id, number) pairs, each added to that token's logit; -100 as good as
            forbids a token.
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
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0
    logit_bias: tuple[tuple[int, float], ...] = ()

    def __post_init__(self) -> None:
        for name, low, high, expected in (
            ("temperature", 0.0, 1e9, "a number from 0 (greedy) to 1e9"),
            ("top_p", 1e-9, 1.0, "a number above 0 and up to 1 (off)"),
            ("min_p", 0.0, 1.0, "a number from 0 (off) to 1"),
            ("repetition_penalty", 1e-9, 1e9, "a number above 0 and up to 1e9; 1 is off"),
            ("presence_penalty", -2.0, 2.0, "a number from -2 to 2; 0 is off"),
            ("frequency_penalty", -2.0, 2.0, "a number from -2 to 2; 0 is off"),
        ):
            value = getattr(self, name)
            if not _is_number(value, low, high):
                raise GenerationError(f"{name} is {value!r}, expected {expected}")
        if not is_count(self.top_k):
            raise GenerationError(f"top_k is {self.top_k!r}, expected an integer from 0 (off)")
        if self.seed is not None and not is_count(self.seed):
            raise GenerationError(f"seed is {self.seed!r}, expected an integer from 0, or None")
        _check_bias(self.logit_bias)


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
        self._counts: Counter[int] = Counter()

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
        kept = filter_logits(logits, self._options, self._seen, self._counts)
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
        self._counts[token_id] += 1
        place = int(np.searchsorted(self._seen, token_id))
        if place == len(self._seen) or self._seen[place] != token_id:
            self._seen = np.insert(self._seen, place, token_id)


def filter_logits(
    logits: FloatArray,
    options: SamplingOptions,
    seen: IdArray,
    counts: Mapping[int, int] | None = None,
) -> FloatArray:
    """Apply bias, penalties, temperature and filters, in that order.

    Args:
        logits: float32 [V]; not changed.
        options: those that are off cost nothing; temperature 0 applies bias and penalties alone.
        seen: int64 [n] distinct ids of prompt and answer so far.
        counts: id -> how often it is in the answer so far.

    Returns:
        float32 [V]; tokens filtered out are -inf. May be `logits` itself.
    """
    if options.logit_bias:
        logits = apply_bias(logits, options.logit_bias)
    if options.repetition_penalty != 1:
        logits = apply_repetition_penalty(logits, seen, options.repetition_penalty)
    if counts and (options.frequency_penalty or options.presence_penalty):
        logits = apply_count_penalties(
            logits, counts, options.frequency_penalty, options.presence_penalty
        )
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


def apply_bias(logits: FloatArray, bias: Sequence[tuple[int, float]]) -> FloatArray:
    """Add to the logits of single tokens.

    Args:
        logits: float32 [V].
        bias: (id, number) pairs of distinct ids; those from V on are ignored.
    """
    biased = logits.copy()
    for token_id, value in bias:
        if token_id < len(logits):
            biased[token_id] += np.float32(value)
    return biased


def apply_count_penalties(
    logits: FloatArray, counts: Mapping[int, int], frequency: float, presence: float
) -> FloatArray:
    """Take `count * frequency + presence` off the logits of tokens of the answer.

    Args:
        logits: float32 [V].
        counts: id -> how often it is in the answer, at least once; ids are below V.
        frequency, presence: above 0 discourage, below 0 encourage.
    """
    ids = np.fromiter(counts.keys(), np.int64, len(counts))
    times = np.fromiter(counts.values(), np.float32, len(counts))
    penalized = logits.copy()
    penalized[ids] -= times * np.float32(frequency) + np.float32(presence)
    return penalized


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


def _is_number(value: object, low: float, high: float) -> bool:
    if isinstance(value, bool) or not isinstance(value, int | float):
        return False
    return low <= value <= high


def _check_bias(bias: object) -> None:
    pairs = bias if isinstance(bias, tuple) else (None,)
    for pair in pairs:
        if (
            not isinstance(pair, tuple)
            or len(pair) != 2
            or not is_count(pair[0])
            or not _is_number(pair[1], -100.0, 100.0)
        ):
            raise GenerationError(
                f"logit_bias is {bias!r}, expected token ids with numbers from -100 to 100"
            )
    if len({pair[0] for pair in pairs}) != len(pairs):
        raise GenerationError(f"logit_bias is {bias!r}, expected each token id once")
