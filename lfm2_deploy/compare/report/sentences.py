"""What a report says in words: its headline, its verdict, where errors begin."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from datetime import datetime
from typing import Literal

from lfm2_deploy.charts.numbers import format_number
from lfm2_deploy.compare.margin import judge_margin
from lfm2_deploy.compare.report.values import LEAST_KLD
from lfm2_deploy.compare.result import (
    GreedyRun,
    Report,
    StateErrors,
    SubjectResult,
    WorstPosition,
)
from lfm2_deploy.compare.verdict import list_notices

_KINDS: Mapping[str, str] = {"conv": "convolution state", "key": "keys", "value": "values"}


@dataclass(frozen=True, slots=True)
class Judgement:
    """The verdict as the page shows it.

    Args:
        tone: its colour.
        word: the verdict.
        sentence: what it was held against.
        reasons: a line for each subject that did not pass.
        notices: what no limit asks for, and a reader must not miss.
    """

    tone: Literal["good", "bad", "plain"]
    word: str
    sentence: str
    reasons: tuple[str, ...] = ()
    notices: tuple[str, ...] = ()


_Run = tuple[int, str, GreedyRun]


@dataclass(frozen=True, slots=True)
class RunGroup:
    """Greedy runs of one prompt: (number of the subject, its name, its run).

    Args:
        prompt: what they continue.
        alike: those that say what the reference says.
        parted: the others.
    """

    prompt: str
    alike: tuple[_Run, ...]
    parted: tuple[_Run, ...]


def write_headline(report: Report) -> str:
    """What was compared with what."""
    names = [subject.info.name for subject in report.subjects]
    what = names[0] if len(names) == 1 else f"{len(names)} subjects"
    name = report.reference.name
    # A Hub's id has a slash as well, but does not begin like this.
    if re.match(r"[./\\~]|[A-Za-z]:[/\\]", name):
        name = re.split(r"[/\\]", name.rstrip("/\\"))[-1] or name
    return f"{what} against {name}"


def judge(report: Report) -> Judgement:
    """The verdict in words."""
    return replace(_judge_limits(report), notices=tuple(list_notices(report)))


def _judge_limits(report: Report) -> Judgement:
    verdict, count = report.verdict, len(report.subjects)
    ran = sum(not subject.failure for subject in report.subjects)
    if not verdict.passed:
        if ran < count and not verdict.rule:
            return Judgement(
                "bad", "Failed", f"{ran} of {count} subjects ran to the end.", verdict.reasons
            )
        word, bad = "Failed", len(verdict.failed) or len(verdict.reasons)
        sentence = f"{bad} of {count} did not pass. {_name_rule(verdict.rule)}".strip()
        return Judgement("bad", word, sentence, verdict.reasons)
    if verdict.rule:
        every = {1: "", 2: "Both passed. "}.get(count, f"All {count} passed. ")
        return Judgement("good", "Passed", f"{every}{_name_rule(verdict.rule)}")
    sentence = "No limit was asked for, so nothing is judged; --max-kld sets one."
    return Judgement("plain", "Measured", sentence)


def _name_rule(rule: str) -> str:
    return f"The limit: {rule}." if rule else ""


def tell_outcome(report: Report, subject: SubjectResult) -> Literal["good", "bad", "plain"]:
    """Whether one subject passed; plain where nothing was asked."""
    if subject.failure or subject.info.name in report.verdict.failed:
        return "bad"
    return "good" if report.verdict.rule else "plain"


def write_date(created: str) -> str:
    """ISO 8601 -> "26 November 2026, 05:44 UTC"; what is no date stays as it is."""
    try:
        when = datetime.fromisoformat(created)
    except ValueError:
        return created
    return f"{when.day} {when:%B %Y, %H:%M} UTC"


def describe_start(states: StateErrors | None) -> str:
    """Where the error of the states begins, in a sentence."""
    if states is None:
        return "Not measured."
    if not states.rows:
        return f"Not measured: {states.absent}."
    if states.start is None:
        errors = states.rows[-1].errors
        most = max(errors, key=lambda error: error.error)
        first, last = format_number(errors[0].error, 2), format_number(most.error, 2)
        return f"No layer stands out: {first} in the first, {last} at most, in layer {most.layer}."
    start = states.start
    if start.kind == "logits":
        where = f"It starts after the states of layer {start.layer}, and shows in the logits"
    else:
        where = f"It starts in the {_KINDS[start.kind]} of layer {start.layer}"
    before = f", after at most {format_number(start.before, 2)} before" if start.layer else ""
    advice = start.advice[:1].upper() + start.advice[1:].rstrip(".")
    return f"{where}: {format_number(start.error, 2)}{before}. {advice}."


def name_margin(margin: float) -> str:
    """How much the first difference of a greedy run matters; `margin` in nats."""
    word = judge_margin(margin)
    if word == "near tie":
        return "A near tie, which rounding may turn"
    times = f"the reference holds its own {format_number(math.exp(margin), 2)} times as likely"
    return f"No tie, so a fault or much lost: {times}" if word == "fault" else f"T{times[1:]}"


def list_rest(run: GreedyRun) -> str:
    """What a subject wrote after the token that differs."""
    return run.subject_text.removeprefix(run.subject_choice.text if run.subject_choice else "")


def group_runs(report: Report) -> list[RunGroup]:
    """Greedy runs by prompt, so that subjects stand under each other."""
    groups: dict[str, list[_Run]] = {}
    for number, subject in enumerate(report.subjects):
        for run in subject.greedy:
            groups.setdefault(run.prompt, []).append((number, subject.info.name, run))
    return [
        RunGroup(
            prompt,
            tuple(run for run in runs if run[2].reference_choice is None),
            tuple(run for run in runs if run[2].reference_choice is not None),
        )
        for prompt, runs in groups.items()
    ]


def list_worst(subject: SubjectResult) -> list[WorstPosition]:
    """The worst positions, but for those where nothing differs that could be shown."""
    return [place for place in subject.worst if not place.divergence < LEAST_KLD]


def list_facts(report: Report) -> dict[str, list[str]]:
    """What subjects are: label -> a value of each; what is known of none is left out."""
    rows = [
        {
            "given as": info.given,
            "made from": info.origin or info.model,
            "precision": info.precision,
            "target": info.target,
            "runtime": info.runtime,
            "device": info.device,
            "driver": info.driver,
        }
        for info in (subject.info for subject in report.subjects)
    ]
    columns = {label: [row[label] for row in rows] for label in rows[0]} if rows else {}
    return {label: values for label, values in columns.items() if any(values)}


def list_protocol(report: Report) -> list[tuple[str, str]]:
    """What subjects were held against, and how."""
    reference, protocol = report.reference, report.protocol
    end = max(protocol.first, protocol.length - 2)
    facts = [
        ("reference", reference.name),
        ("computed by", reference.detail + (" (from the cache)" if reference.cached else "")),
        ("text", protocol.text),
        ("windows", f"{protocol.windows:,} of {protocol.length:,} tokens, each from empty states"),
        ("scored", f"positions {protocol.first} to {end} of each, {protocol.positions:,} in all"),
        ("standard errors over", protocol.error_over),
    ]
    if protocol.begin_id is not None:
        facts.append(("first token of each window", f"replaced by {protocol.begin_id}"))
    if report.kept:
        facts.append(("bundles made for this", report.kept))
    return facts + [("remark", remark) for remark in protocol.remarks]
