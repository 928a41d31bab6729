"""A whole comparison: the reference first, then one subject after another.

Enters: subjects, a reference and what to measure. Leaves: a `result.Report`. One model is in
memory at a time. A subject that fails is a row with its reason, and the others go on.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import TypeVar

from lfm2_deploy.compare.defaults import CHUNKS, GREEDY, LENGTH, PROMPTS, WORST
from lfm2_deploy.compare.greedy import Judgement, Written, describe_run, judge
from lfm2_deploy.compare.measure import Measured, Wish, measure_cost, measure_subject
from lfm2_deploy.compare.prepare import Oracle
from lfm2_deploy.compare.protocol import Windows, choose_windows, take_windows
from lfm2_deploy.compare.reference_cache import keep_judgements, read_judgements
from lfm2_deploy.compare.result import (
    Cost,
    GreedyRun,
    Protocol,
    ReferenceInfo,
    Report,
    SubjectResult,
)
from lfm2_deploy.compare.subjects import Subject, list_versions
from lfm2_deploy.compare.truth import Truth
from lfm2_deploy.compare.verdict import Limits, give_verdict
from lfm2_deploy.compare.words import Words
from lfm2_deploy.contracts import Progress
from lfm2_deploy.errors import GenerationError, Lfm2DeployError
from lfm2_deploy.machine import describe_machine
from lfm2_deploy.tokenizer import Tokenizer

_Value = TypeVar("_Value")


@dataclass(frozen=True, slots=True)
class Settings:
    """How to compare.

    Args:
        text: a file, or None for the text that comes with this package.
        chunks, length: windows, and tokens in each.
        wish: what to measure of each subject.
        cost: whether to measure speed and memory.
        quick: measure speed once, and shortly.
        cache: whether to keep the reference in the user's cache, and to find it there.
        save_base: where to write the reference as llama.cpp's base file; None for nowhere.
        limits: what every subject must keep.
    """

    text: Path | None = None
    chunks: int = CHUNKS
    length: int = LENGTH
    wish: Wish = field(default_factory=lambda: Wish(WORST, PROMPTS, GREEDY))
    cost: bool = True
    quick: bool = False
    cache: bool = True
    save_base: Path | None = None
    limits: Limits = field(default_factory=Limits)


def run_comparison(
    subjects: Sequence[Subject],
    truth: Truth,
    settings: Settings,
    progress: Progress,
    busy_cores: float | None = None,
) -> Report:
    """Compare subjects with a reference.

    Args:
        subjects: each with a name of its own.
        truth: the reference.
        settings: how.
        progress: told of each step.
        busy_cores: that other programs kept busy before; None where it is not known.

    Raises:
        Lfm2DeployError: the reference cannot be had, or there is one subject and it failed
            before anything was measured.
    """
    # First: nothing else is in memory then, and a device that is missing is told before a
    # reference is computed for an hour.
    costs = {
        subject.name: _attempt(partial(_try, subject, settings, progress)) for subject in subjects
    }
    _raise_if_all_failed(list(costs.values()))
    tokenizer = _find_tokenizer(truth, subjects)
    windows, words = _choose_windows(truth, subjects, tokenizer, settings), Words(tokenizer)
    versions = list_versions()
    with Oracle(truth, windows, settings.cache, versions, progress) as oracle:
        if settings.save_base is not None:
            oracle.save_base(settings.save_base)
        measure = partial(
            measure_subject,
            reference=oracle.reference,
            reference_precision=truth.precision,
            windows=windows,
            words=words,
            wish=_limit(settings.wish, truth, windows),
            progress=progress,
        )
        results = _measure_all(subjects, costs, measure, oracle, words, progress)
        reference = _describe_reference(truth, oracle, versions)
    report = _report(truth, subjects, settings, windows, reference, results, versions)
    return replace(report, busy_cores=busy_cores if settings.cost else None)


def _report(
    truth: Truth,
    subjects: Sequence[Subject],
    settings: Settings,
    windows: Windows,
    reference: ReferenceInfo,
    results: tuple[SubjectResult, ...],
    versions: Mapping[str, str],
) -> Report:
    return Report(
        reference=reference,
        protocol=_describe_protocol(windows),
        subjects=results,
        verdict=give_verdict(results, settings.limits),
        layer_types=_list_layers(truth, subjects),
        machine=_describe_machine(),
        versions=versions,
        created=datetime.now(UTC).isoformat(timespec="seconds"),
    )


def _measure_all(
    subjects: Sequence[Subject],
    costs: Mapping[str, Cost | Exception | None],
    measure: Callable[[Subject], Measured],
    oracle: Oracle,
    words: Words,
    progress: Progress,
) -> tuple[SubjectResult, ...]:
    """What comes out for each subject, in order, and what the reference says to their texts."""
    measured = {one.name: _go_on(costs[one.name], partial(measure, one)) for one in subjects}
    _raise_if_all_failed(list(measured.values()))
    runs = _judge_all(oracle, measured, words, progress)
    return tuple(
        _assemble(subject, measured[subject.name], costs[subject.name], runs, oracle)
        for subject in subjects
    )


def _try(subject: Subject, settings: Settings, progress: Progress) -> Cost | None:
    """Its cost, or at least whether it loads."""
    if settings.cost:
        return measure_cost(subject, settings.quick, progress)
    if subject.bundle is not None:
        subject.load(progress).close()
    return None


def _attempt(work: Callable[[], _Value]) -> _Value | Exception:
    """What the work gives, or why it failed: a backend may raise anything."""
    try:
        return work()
    except Exception as error:
        return error


def _go_on(before: object, work: Callable[[], _Value]) -> _Value | Exception:
    """As `_attempt`, where what came before did not fail already."""
    return before if isinstance(before, Exception) else _attempt(work)


def _raise_if_all_failed(outcomes: Sequence[object]) -> None:
    """With nothing to tell of, the first reason is the result."""
    errors = [outcome for outcome in outcomes if isinstance(outcome, Exception)]
    if errors and len(errors) == len(outcomes):
        raise errors[0]


def _find_tokenizer(truth: Truth, subjects: Sequence[Subject]) -> Tokenizer | None:
    if truth.tokenizer is not None:
        return truth.tokenizer
    found = (subject.find_tokenizer() for subject in subjects)
    return next((tokenizer for tokenizer in found if tokenizer is not None), None)


def _choose_windows(
    truth: Truth, subjects: Sequence[Subject], tokenizer: Tokenizer | None, settings: Settings
) -> Windows:
    if truth.base is not None:
        if settings.text is not None:
            raise GenerationError(
                f"{truth.name} brings its own tokens, so {settings.text} cannot be read: leave "
                "--text out"
            )
        return take_windows(truth.base, tokenizer, settings.chunks, settings.length)
    config = truth.config
    assert config is not None
    found = [truth.context_length, *(subject.context_length for subject in subjects)]
    contexts = [context for context in found if context is not None]
    shortest = min(settings.length, config.max_position_embeddings, *contexts)
    windows = choose_windows(tokenizer, config.vocab_size, settings.text, settings.chunks, shortest)
    if shortest < settings.length:
        remark = (
            f"windows of {shortest} instead of {settings.length} tokens: a context holds no more"
        )
        windows = replace(windows, remarks=(remark, *windows.remarks))
    return windows


def _limit(wish: Wish, truth: Truth, windows: Windows) -> Wish:
    """As much greedy text as the reference has room to read; none where no model is behind it."""
    if truth.base is not None:
        return replace(wish, greedy_tokens=0)
    if truth.context_length is None:
        return wish
    room = truth.context_length - windows.prompt_length
    return replace(wish, greedy_tokens=max(0, min(wish.greedy_tokens, room)))


def _judge_all(
    oracle: Oracle,
    measured: Mapping[str, Measured | Exception],
    words: Words,
    progress: Progress,
) -> dict[Written, GreedyRun]:
    """Let the reference judge all greedy texts of all subjects, in one pass."""
    every = [m for m in measured.values() if not isinstance(m, Exception)]
    texts = list(dict.fromkeys(text for one in every for text in one.written))
    if not oracle.has_model or not texts:
        return {}
    said: dict[Written, list[Judgement]] = {}
    if oracle.stored is not None:
        known = {text: read_judgements(oracle.stored, text) for text in texts}
        said = {text: found for text, found in known.items() if found is not None}
    missing = [text for text in texts if text not in said]
    if missing:
        scorer = oracle.open_model()
        try:
            answers = scorer.score([text.request for text in missing], progress)
            fresh = [(t, judge(t, a.logits)) for t, a in zip(missing, answers, strict=True)]
        finally:
            scorer.close()
        said |= dict(fresh)
        if oracle.stored is not None:
            keep_judgements(oracle.stored, fresh)
    return {text: describe_run(text, said[text], words) for text in texts}


def _assemble(
    subject: Subject,
    measured: Measured | Exception,
    cost: Cost | Exception | None,
    runs: Mapping[Written, GreedyRun],
    oracle: Oracle,
) -> SubjectResult:
    timed = None if isinstance(cost, Exception) else cost
    if isinstance(measured, Exception):
        return SubjectResult(subject.describe(), failure=explain(measured), cost=timed)
    remarks = [*measured.remarks, *oracle.tell_other_model(subject)]
    if not oracle.has_model:
        remarks.append("greedy texts are not judged: there is no model behind a base file")
    record = None if subject.bundle is None else subject.bundle.manifest.rounding
    return SubjectResult(
        info=measured.info,
        scores=measured.scores,
        worst=measured.worst,
        greedy=tuple(runs[text] for text in measured.written if text in runs),
        states=measured.states,
        cost=timed,
        remarks=tuple(remarks),
        rounding=() if record is None else record.layers,
        decoding=measured.decoding,
        rounded_without_text=record is not None and not record.layers,
    )


def explain(error: Exception) -> str:
    """Why something failed, in one line."""
    text = " ".join(str(error).split())
    if isinstance(error, Lfm2DeployError):
        return text
    if isinstance(error, MemoryError):
        return "there is not enough memory"
    return f"{type(error).__name__}: {text}"[:500]


def _describe_reference(truth: Truth, oracle: Oracle, versions: Mapping[str, str]) -> ReferenceInfo:
    detail = truth.detail
    if truth.kind in versions:
        detail = detail.replace(truth.kind, f"{truth.kind} {versions[truth.kind]}", 1)
    return ReferenceInfo(
        name=truth.name,
        kind=truth.kind,
        detail=detail,
        perplexity=oracle.measure_perplexity(),
        resolution=oracle.reference.resolution,
        cached=oracle.cached,
    )


def _describe_protocol(windows: Windows) -> Protocol:
    count = len(windows.chunks)
    return Protocol(
        text=windows.text,
        windows=count,
        length=windows.length,
        first=windows.first,
        positions=count * windows.positions,
        begin_id=windows.begin_id,
        error_over="windows" if count > 1 else "positions",
        remarks=windows.remarks,
    )


def _list_layers(truth: Truth, subjects: Sequence[Subject]) -> tuple[str, ...]:
    if truth.config is not None:
        return tuple(truth.config.layer_types)
    configs = [subject.bundle.config for subject in subjects if subject.bundle is not None]
    return tuple(configs[0].layer_types) if configs else ()


def _describe_machine() -> dict[str, str]:
    machine = describe_machine()
    memory = machine.memory_total_bytes
    return {
        "system": machine.system,
        "processor": machine.cpu or "unknown",
        "cores": "unknown" if machine.usable_cores is None else str(machine.usable_cores),
        "instructions": " ".join(machine.instructions) or "unknown",
        "memory": "unknown" if memory is None else f"{memory / 1e9:.1f} GB",
    }
