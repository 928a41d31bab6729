"""A whole comparison as values: what was compared, on what, and what came out.

Every number that a table, JSON or a page shows is here, and nothing of how it was measured.
`result_json` turns a report into JSON and back. KL divergences are in nats, of the reference
from the subject: KL(reference || subject).
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

from lfm2_deploy.quantization_record import LayerError
from lfm2_deploy.states import StateKind

# What KL divergences are told at: 0 %, 1 %, ... 100 % of the positions.
PERCENTS = 100
# Nats that no fault of decoding stays below: the last bits of float32, and of base files.
_LEAST_FAULT = 1e-6
# Others' work on cores, above which timings are not worth much.
QUIET_CORES = 0.25


@dataclass(frozen=True, slots=True)
class Estimate:
    """A mean and its standard error; the error is nan where one sample is all there is."""

    value: float
    error: float


@dataclass(frozen=True, slots=True)
class Protocol:
    """On what subjects are compared.

    Args:
        text: what the text is, for people.
        windows: rows of tokens, each read from an empty state.
        length: tokens in each window.
        first: of a window, the first position whose logits are scored; the last is `length - 2`.
        positions: scored in all.
        begin_id: the token put in place of each window's first one; None where it was kept.
        error_over: what the samples of standard errors are. Positions of one window depend on
            each other, so "windows", wherever there are two.
        remarks: what was done otherwise than asked, such as fewer windows for a short text.
    """

    text: str
    windows: int
    length: int
    first: int
    positions: int
    begin_id: int | None
    error_over: Literal["windows", "positions"]
    remarks: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class ReferenceInfo:
    """What subjects are held against.

    Args:
        name: as the user wrote it, or the model's.
        kind: "torch", "transformers", "bundle" or "base".
        detail: for people, such as "torch 2.13.0, float32, layer by layer".
        perplexity: of the text.
        resolution: KL divergences below so many nats mean nothing, for how it is stored;
            0 where it is exact.
        cached: whether it was there already.
    """

    name: str
    kind: str
    detail: str
    perplexity: Estimate
    resolution: float
    cached: bool


@dataclass(frozen=True, slots=True)
class SubjectInfo:
    """What was compared.

    Args:
        name: short, and another for each subject.
        given: as the user wrote it.
        kind: "bundle", "torch" or "transformers".
        model: its name.
        precision: such as "int4"; "fp32" of torch.
        target: what a bundle was made for; "" of others.
        runtime: which adapter ran it.
        device: where it really ran.
        size_bytes: on disk; None where it has no size of its own.
        notes: what its runtime says of itself.
        origin: the checkpoint it was made from, with its revision; "" where that is not known.
        driver: version of the device's driver; "" where there is none or it does not tell.
    """

    name: str
    given: str
    kind: str
    model: str
    precision: str
    target: str
    runtime: str
    device: str
    size_bytes: int | None
    notes: tuple[str, ...] = ()
    origin: str = ""
    driver: str = ""


@dataclass(frozen=True, slots=True)
class Divergence:
    """KL divergence from the reference, in nats.

    Args:
        mean: over all positions, with its standard error (see `Protocol.error_over`).
        error_by_position: the standard error as if positions were independent, which is what
            llama.cpp tells.
        median, p99, p999, most: over all positions.
        percentiles: 101 values: at 0 %, 1 %, ... 100 % of the positions.
        by_window: mean of each window, in order.
        by_position: mean over windows at each scored position of a window, in order.
    """

    mean: Estimate
    error_by_position: float
    median: float
    p99: float
    p999: float
    most: float
    percentiles: tuple[float, ...]
    by_window: tuple[float, ...]
    by_position: tuple[float, ...]


@dataclass(frozen=True, slots=True)
class Scores:
    """How a subject's logits differ from the reference's.

    Args:
        divergence: KL divergence.
        same_top: share of positions where both have the same likeliest token.
        top5_overlap: mean share of the reference's five likeliest tokens that are among the
            subject's five.
        perplexity: of the text.
        perplexity_ratio: to the reference's, with the error of the ratio itself.
        probability_rms: root mean square of the change in the true next token's probability.
    """

    divergence: Divergence
    same_top: Estimate
    top5_overlap: Estimate
    perplexity: Estimate
    perplexity_ratio: Estimate
    probability_rms: float


@dataclass(frozen=True, slots=True)
class Decoding:
    """Single tokens beside whole windows, at the same few positions.

    Args:
        positions: that were read both ways.
        divergence: KL divergence, one token at a time.
        together: KL divergence of the same positions, as their windows were read.
        excess: the first less the second.
        same_top_excess: likewise, of the share with the same likeliest token; below 0 is worse.
        log_ratio: mean of ln(first / second) over positions, 0 where both are as good.
        most: largest KL divergence, one token at a time.
        most_together: largest KL divergence of all scored positions, as windows were read.
    """

    positions: int
    divergence: Estimate
    together: float
    excess: float
    same_top_excess: float
    log_ratio: Estimate
    most: float
    most_together: float

    @property
    def stands_out(self) -> bool:
        """Whether decoding computes something else than prompts do.

        Rounding makes some positions better and others worse. So it shows as positions that are
        all worse, or as one that is worse than any of the many that were read together.
        """
        if self.divergence.value < _LEAST_FAULT:
            return False
        all_worse = self.log_ratio.value > max(math.log(2), 4 * self.log_ratio.error)
        return all_worse or not self.most <= 4 * self.most_together


@dataclass(frozen=True, slots=True)
class Candidate:
    """A token and how likely it is held to be, 0 to 1."""

    token_id: int
    text: str
    probability: float


@dataclass(frozen=True, slots=True)
class WorstPosition:
    """One of the positions with the largest KL divergence.

    Args:
        window: which window.
        position: in it, of the last token read.
        divergence: KL divergence there, in nats.
        context: the text that was read last.
        next_token: the true next token, and how likely the reference held it.
        next_probability: how likely the subject held it.
        reference: its likeliest tokens, likeliest first.
        subject: likewise.
    """

    window: int
    position: int
    divergence: float
    context: str
    next_token: Candidate
    next_probability: float
    reference: tuple[Candidate, ...]
    subject: tuple[Candidate, ...]


@dataclass(frozen=True, slots=True)
class GreedyRun:
    """A subject's own greedy text, judged token by token by the reference.

    Args:
        prompt: what it continues.
        tokens: how many it wrote.
        equal: how many the reference would have written too, before the first it would not.
        common: the text of those.
        subject_text: what the subject wrote from there on; "" where nothing differs.
        reference_choice: what the reference would have written instead; None likewise.
        subject_choice: what the subject wrote there, with the reference's probability of it.
        margin: by how many nats the reference prefers its own; small is a near tie, large a
            fault. None likewise.
        agreement: share of all tokens written that the reference would have written too, given
            the subject's text before them.
    """

    prompt: str
    tokens: int
    equal: int
    common: str
    subject_text: str
    reference_choice: Candidate | None
    subject_choice: Candidate | None
    margin: float | None
    agreement: float


@dataclass(frozen=True, slots=True)
class StateError:
    """Error of one state: root mean square of the difference over that of the reference."""

    layer: int
    kind: StateKind
    error: float


@dataclass(frozen=True, slots=True)
class StateRow:
    """Errors of all states, layer by layer, of all rows of one length.

    Args:
        tokens: of each row.
        errors: the largest of all rows; medians in a mixture of experts that is rounded.
    """

    tokens: int
    errors: tuple[StateError, ...]


@dataclass(frozen=True, slots=True)
class ErrorStart:
    """Where the error of the states jumps first.

    Args:
        layer: the first layer whose states are much worse than all before it.
        kind: its worst state; "logits" where all states are right and the logits are not.
        error: of that state, or of the logits.
        before: the largest error of the layers before; 0 where it is the first.
        advice: where to look, for people.
    """

    layer: int
    kind: StateKind | Literal["logits"]
    error: float
    before: float
    advice: str


@dataclass(frozen=True, slots=True)
class StateErrors:
    """Errors of the states.

    Args:
        rows: after short and after long rows of tokens; empty where they are not to be had.
        start: where the error begins; None where it grows without a jump.
        absent: why there are none; "" where there are.
    """

    rows: tuple[StateRow, ...]
    start: ErrorStart | None
    absent: str = ""


@dataclass(frozen=True, slots=True)
class Cost:
    """Speed and memory, measured in a process of its own.

    Args:
        context: tokens of the prompt that was timed.
        prefill, decode: tokens a second, medians of `rounds`.
        first_token_ms: of that prompt, milliseconds.
        load_s: of a load when files are in memory, seconds.
        resident_bytes: memory once loaded; None where it is not known.
        peak_bytes: most memory; likewise.
        rounds: how often speed was measured.
    """

    context: int
    prefill: float
    decode: float
    first_token_ms: float
    load_s: float
    resident_bytes: int | None
    peak_bytes: int | None
    rounds: int = 3


@dataclass(frozen=True, slots=True)
class SubjectResult:
    """What came out for one subject.

    Args:
        info: what it is.
        failure: why it could not be compared to the end; "" where it could.
        scores, states, cost: None where they were not measured.
        decoding: None where it was not measured, or windows were read token by token.
        worst: the worst positions, worst first.
        greedy: its greedy runs.
        remarks: what was measured otherwise than for the others, or not at all, and why.
        rounding: what its exporter measured of each layer on a text; empty where it did not.
        rounded_without_text: whether its weights were rounded by a method that measures nothing
            but the error of the weights themselves, which is another figure.
    """

    info: SubjectInfo
    failure: str = ""
    scores: Scores | None = None
    worst: tuple[WorstPosition, ...] = ()
    greedy: tuple[GreedyRun, ...] = ()
    states: StateErrors | None = None
    cost: Cost | None = None
    remarks: tuple[str, ...] = ()
    rounding: tuple[LayerError, ...] = ()
    decoding: Decoding | None = None
    rounded_without_text: bool = False


@dataclass(frozen=True, slots=True)
class Verdict:
    """Whether every subject kept the limits asked for.

    Args:
        passed: none failed, and none is over a limit.
        rule: the limits, for people; "" where none was given.
        reasons: one line for each subject that did not pass.
        most_kld: the limit of the mean KL divergence, in nats; None where none was given.
        failed: names of the subjects that did not pass.
    """

    passed: bool
    rule: str
    reasons: tuple[str, ...] = ()
    most_kld: float | None = None
    failed: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Report:
    """A whole comparison.

    Args:
        reference: what subjects are held against.
        protocol: on what.
        subjects: in the order they were given.
        verdict: against the limits.
        layer_types: kind of each layer of the model, "conv" or "full_attention".
        machine: processor, memory and system, by label.
        versions: package -> version.
        created: ISO 8601, in UTC.
        command: what was typed; "" where it was called from Python.
        busy_cores: cores that other programs kept busy when this began; None where speed was not
            measured, or the system does not tell.
        kept: where bundles that were made for it are kept, and how long; "" where none were.
    """

    reference: ReferenceInfo
    protocol: Protocol
    subjects: tuple[SubjectResult, ...]
    verdict: Verdict
    layer_types: tuple[str, ...]
    machine: Mapping[str, str]
    versions: Mapping[str, str]
    created: str
    command: str = ""
    busy_cores: float | None = None
    kept: str = ""

    @property
    def disturbed(self) -> str:
        """What may have slowed subjects down; "" where nothing did."""
        if self.busy_cores is None or self.busy_cores <= QUIET_CORES:
            return ""
        return (
            f"other programs kept {self.busy_cores:.1f} cores busy when this began: speeds may "
            "be low"
        )
