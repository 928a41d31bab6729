"""One subject against a reference: scores, worst positions, states, greedy texts, cost."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from lfm2_deploy.bench.process import run_worker
from lfm2_deploy.compare.decoding import decode_windows
from lfm2_deploy.compare.greedy import Written, write_greedily
from lfm2_deploy.compare.metrics import PositionScores, score_positions
from lfm2_deploy.compare.protocol import Windows
from lfm2_deploy.compare.reference import Reference, list_requests, pair_states
from lfm2_deploy.compare.result import (
    Cost,
    Decoding,
    Scores,
    StateErrors,
    SubjectInfo,
    WorstPosition,
)
from lfm2_deploy.compare.scorer import Request, RuntimeScorer, States
from lfm2_deploy.compare.states import compare_states, relative_error
from lfm2_deploy.compare.subjects import Subject
from lfm2_deploy.compare.summarize import summarize
from lfm2_deploy.compare.words import Words
from lfm2_deploy.compare.worst import WorstPositions
from lfm2_deploy.contracts import FloatArray, Progress
from lfm2_deploy.errors import GenerationError

# Speed is timed on a prompt of so many tokens, or of half the context where that is less.
COST_CONTEXT = 256


@dataclass(frozen=True, slots=True)
class Wish:
    """What to measure of each subject.

    Args:
        worst: how many of the worst positions to tell.
        prompts, greedy_tokens: greedy texts, and how long; 0 for none.
    """

    worst: int
    prompts: int
    greedy_tokens: int


@dataclass(frozen=True, slots=True)
class Measured:
    """What came out, but for the reference's judgement of greedy texts."""

    info: SubjectInfo
    scores: Scores
    decoding: Decoding | None
    worst: tuple[WorstPosition, ...]
    states: StateErrors
    written: tuple[Written, ...]
    remarks: tuple[str, ...]


def measure_subject(
    subject: Subject,
    reference: Reference,
    reference_precision: str,
    windows: Windows,
    words: Words,
    wish: Wish,
    progress: Progress,
) -> Measured:
    """Load a subject, hold it against the reference, and close it.

    Raises:
        Lfm2DeployError: it cannot be loaded, or does not fit the reference.
    """
    scorer = subject.load(progress)
    try:
        _check_fit(scorer, reference, windows)
        precisions = (reference_precision, subject.precision)
        every, worst, states = _score(scorer, precisions, reference, windows, words, wish, progress)
        decoding = decode_windows(
            scorer.runtime, windows, every, reference, progress, f"decoding with {subject.name}"
        )
        prompts = windows.choose_prompts(wish.prompts) if wish.greedy_tokens else []
        written = []
        for number, prompt in enumerate(prompts):
            progress(f"writing greedily with {subject.name}", number, len(prompts))
            found = write_greedily(scorer.runtime, prompt, wish.greedy_tokens)
            written += [] if found is None else [found]
        return Measured(
            info=_describe(subject, scorer),
            scores=summarize(every),
            decoding=decoding,
            worst=worst,
            states=states,
            written=tuple(written),
            remarks=_remark(scorer, prompts, written),
        )
    finally:
        scorer.close()


def measure_cost(subject: Subject, quick: bool, progress: Progress) -> Cost | None:
    """Speed and memory of a bundle, in a process of its own; None of anything else.

    Raises:
        Lfm2DeployError: it cannot be loaded there.
    """
    if subject.bundle is None:
        return None
    context = min(COST_CONTEXT, subject.bundle.manifest.context_length // 2)
    rounds = 1 if quick else 3
    request = {
        "bundle": str(subject.bundle.path),
        "contexts": [context],
        "decode": max(1, min(16 if quick else 64, context)),
        "rounds": rounds,
        "threads": subject.threads,
        "device": subject.device,
    }
    result = run_worker(request, lambda what: progress(f"timing {subject.name}", 0, 0))
    (speed,) = result["speeds"]
    return Cost(
        context=context,
        prefill=speed["prefill"],
        decode=speed["decode"],
        first_token_ms=speed["first_token_ms"],
        load_s=result["load_warm_s"],
        resident_bytes=result["resident_loaded_bytes"],
        peak_bytes=result["peak_bytes"],
        rounds=rounds,
    )


def measure_load() -> float | None:
    """Cores that were busy over the last minute; None where the system does not tell."""
    return os.getloadavg()[0] if hasattr(os, "getloadavg") else None


def _check_fit(scorer: RuntimeScorer, reference: Reference, windows: Windows) -> None:
    vocab_size, context = scorer.config.vocab_size, scorer.runtime.context_length
    if vocab_size != reference.vocab_size:
        raise GenerationError(
            f"vocabularies differ: {vocab_size:,} and the reference's {reference.vocab_size:,}; "
            "compare it with the model it was made from"
        )
    if windows.length - 1 > context:
        raise GenerationError(
            f"its context holds {context} tokens and windows have {windows.length}; take a shorter "
            "--length, or export with a longer --context"
        )


def _score(
    scorer: RuntimeScorer,
    precisions: tuple[str, str],
    reference: Reference,
    windows: Windows,
    words: Words,
    wish: Wish,
    progress: Progress,
) -> tuple[list[PositionScores], tuple[WorstPosition, ...], StateErrors]:
    requests, found = list_requests(windows), WorstPositions(windows, words, wish.worst)
    scores: list[PositionScores] = []
    states: dict[int, States] = {}
    logits_error = 0.0
    for number, scored in enumerate(scorer.score(requests, progress)):
        states.update(pair_states(number, scored))
        if number < len(windows.chunks):
            ours = reference.read(number)
            targets = np.array(windows.targets(number), np.int64)
            scores.append(score_positions(ours, scored.logits, targets, reference.floor))
            found.look(number, scores[-1], ours, scored.logits)
            if number == 0:
                logits_error = relative_error(_center(ours), _center(scored.logits))
    return (
        scores,
        found.list(),
        _compare_states(reference, requests, states, precisions, scorer, logits_error),
    )


def _compare_states(
    reference: Reference,
    requests: Sequence[Request],
    states: dict[int, States],
    precisions: tuple[str, str],
    scorer: RuntimeScorer,
    logits_error: float,
) -> StateErrors:
    if not reference.states:
        return StateErrors((), None, "the reference gives no states")
    if not states:
        return StateErrors((), None, f"runtime {scorer.runtime.info.runtime} gives no states")
    both = sorted(states.keys() & reference.states.keys())
    rows = [(len(requests[n].tokens), reference.states[n], states[n]) for n in both]
    if any(ours.keys() != theirs.keys() for _, ours, theirs in rows):
        return StateErrors((), None, "the reference has other layers")
    return compare_states(rows, scorer.config, precisions, logits_error)


def _center(logits: FloatArray) -> FloatArray:
    """Logits [N, V] less their mean, which no probability depends on."""
    centered: FloatArray = logits - logits.mean(-1, keepdims=True)
    return centered


def _describe(subject: Subject, scorer: RuntimeScorer) -> SubjectInfo:
    info = scorer.runtime.info
    return replace(
        subject.describe(),
        runtime=info.runtime,
        device=info.device,
        driver=info.driver,
        notes=tuple(info.notes),
    )


def _remark(
    scorer: RuntimeScorer, prompts: Sequence[Sequence[int]], written: Sequence[Written]
) -> tuple[str, ...]:
    can, remarks = scorer.runtime.info.capabilities, []
    if not can.scores_all:
        remarks.append("it gives the last logits only: scored positions were read one by one")
    if len(written) < len(prompts):
        remarks.append("its context has no room for greedy texts")
    return tuple(remarks)
