"""What commands found -> `Measurement`s, and these into a bundle's folder and card.

Each function takes what one command has in its hands. Texts are cut to what the file takes.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from lfm2_deploy.bundle import Bundle
from lfm2_deploy.canary.judge import Verdict
from lfm2_deploy.card.measurements import (
    Figure,
    Measurement,
    Outcome,
    add_measurements,
    find_way,
    stamp,
)
from lfm2_deploy.card.write import write_card
from lfm2_deploy.compare.compare import Comparison
from lfm2_deploy.compare.result import QUIET_CORES, Estimate, Protocol, Report, SubjectResult
from lfm2_deploy.compare.subjects import list_versions
from lfm2_deploy.contracts import RuntimeInfo
from lfm2_deploy.evaluation.result import Evaluation, TaskResult

_LONGEST = 300


def record(bundle: Bundle, found: Sequence[Measurement]) -> None:
    """Keep measurements with a bundle, and bring its card up to date.

    Raises:
        BundleError: its folder takes no files, or holds a damaged measurements.json.
    """
    add_measurements(bundle, found)
    write_card(bundle)


def of_check(bundle: Bundle, info: RuntimeInfo, verdict: Verdict) -> Measurement:
    """What the canary said of a device."""
    return Measurement(
        kind="check",
        bundle=bundle.identity,
        figures=(
            Figure("logit error, part of their spread", verdict.error),
            Figure("limit of that", verdict.limit),
            Figure("largest KL divergence of a call", verdict.kld, unit="nats"),
            Figure("likeliest tokens right", verdict.same_top / verdict.calls, unit="share"),
        ),
        outcome=verdict.outcome,
        reason=_cut(verdict.reason),
        reference="torch, float32, on the weights as stored",
        protocol=f"canary, {verdict.calls} calls",
        **_place(info),
    )


def of_verify(
    bundle: Bundle, comparison: Comparison, text: str, passed: bool, rule: str
) -> Measurement:
    """What `verify` measured.

    Args:
        bundle: what was compared with torch.
        comparison: the figures.
        text: on what, for people.
        passed, rule: its verdict.
    """
    figures = (
        Figure("KL divergence", comparison.kld, comparison.kld_error, "nats"),
        Figure("same top token", comparison.same_top, unit="share"),
        Figure("perplexity", comparison.tested_perplexity),
        Figure("perplexity of the reference", comparison.reference_perplexity),
    )
    return Measurement(
        kind="verify",
        bundle=bundle.identity,
        figures=figures,
        runtime=bundle.manifest.runtime,
        device=_cut(comparison.device),
        driver=_cut(comparison.driver),
        way=find_way(comparison.device, comparison.driver),
        outcome="passed" if passed else "failed",
        reason="" if passed else _cut(f"not {rule}"),
        reference="the original in torch, float32",
        protocol=_cut(f"{comparison.positions:,} positions of {text}"),
        versions=list_versions(),
        created=stamp(),
    )


def of_comparison(bundle: Bundle, report: Report, subject: SubjectResult) -> Measurement | None:
    """What `compare` measured of one subject; None where it failed.

    Args:
        bundle: the subject.
        report: the whole comparison.
        subject: its part.
    """
    scores, info = subject.scores, subject.info
    if scores is None:
        return None
    figures = [
        _estimate("KL divergence", scores.divergence.mean, "nats"),
        _estimate("same top token", scores.same_top, "share"),
        _estimate("perplexity, ratio to the reference's", scores.perplexity_ratio),
        _estimate("perplexity", scores.perplexity),
        _estimate("perplexity of the reference", report.reference.perplexity),
    ]
    if subject.cost is not None:
        figures += [
            Figure("prefill", subject.cost.prefill, unit="tok/s"),
            Figure("decode", subject.cost.decode, unit="tok/s"),
        ]
    return Measurement(
        kind="compare",
        bundle=bundle.identity,
        figures=tuple(figures),
        runtime=info.runtime,
        device=_cut(info.device),
        driver=_cut(info.driver),
        way=find_way(info.device, info.driver),
        outcome=_judge(report, info.name),
        reference=_cut(f"{report.reference.name} ({report.reference.detail})"),
        protocol=_describe_protocol(report.protocol),
        remark=_tell_busy(report.busy_cores),
        versions=dict(report.versions),
        created=report.created,
    )


def of_evaluation(bundle: Bundle, info: RuntimeInfo, found: Evaluation) -> list[Measurement]:
    """What `eval` found, a measurement a task."""
    versions = {**list_versions(), **found.versions}
    return [
        Measurement(
            kind="eval",
            bundle=bundle.identity,
            figures=_list_metrics(task),
            reference="",
            protocol=_describe_task(task),
            **{**_place(info), "versions": versions},
        )
        for task in found.tasks
        if task.metrics
    ]


def of_bench(bundle: Bundle, result: Mapping[str, Any], busy_cores: float | None) -> Measurement:
    """What `bench` measured, of the longest prompt.

    Args:
        bundle: what ran.
        result: as `bench.worker.run` returns it.
        busy_cores: that other programs kept busy before; None where that is not known.
    """
    speed = max(result["speeds"], key=lambda speed: speed["context"])
    figures = [
        Figure("decode", speed["decode"], unit="tok/s"),
        Figure("prefill", speed["prefill"], unit="tok/s"),
        Figure("first token", speed["first_token_ms"], unit="ms"),
        Figure("load", result["load_warm_s"], unit="s"),
    ]
    if result["peak_bytes"] is not None:
        figures.append(Figure("most memory", float(result["peak_bytes"]), unit="bytes"))
    return Measurement(
        kind="bench",
        bundle=bundle.identity,
        figures=tuple(figures),
        runtime=bundle.manifest.runtime,
        device=_cut(result["device"]),
        driver=_cut(result["driver"]),
        way=find_way(result["device"], result["driver"]),
        protocol=f"prompt of {speed['context']:,} tokens, {result['threads']} threads",
        remark=_tell_busy(busy_cores),
        versions=list_versions(),
        created=stamp(),
    )


def _place(info: RuntimeInfo) -> dict[str, Any]:
    return {
        "runtime": info.runtime,
        "device": _cut(info.device),
        "driver": _cut(info.driver),
        "way": find_way(info.device, info.driver),
        "versions": list_versions(),
        "created": stamp(),
    }


def _estimate(name: str, estimate: Estimate, unit: Any = "") -> Figure:
    return Figure(name, estimate.value, estimate.error, unit)


def _judge(report: Report, name: str) -> Outcome:
    """A verdict only where limits were asked for."""
    if not report.verdict.rule:
        return ""
    return "failed" if name in report.verdict.failed else "passed"


def _describe_protocol(protocol: Protocol) -> str:
    return _cut(
        f"{protocol.windows} windows of {protocol.length} tokens of {protocol.text}, "
        f"{protocol.positions:,} positions, standard errors over {protocol.error_over}"
    )


def _tell_busy(cores: float | None) -> str:
    """What others did meanwhile, which makes speeds low; "" where it is little or not known."""
    if cores is None or cores <= QUIET_CORES:
        return ""
    return f"other programs kept {cores:.1f} cores busy, so speeds may be low"


def _describe_task(task: TaskResult) -> str:
    of = "" if task.samples == task.total else f" of {task.total:,}"
    version = f" {task.version}" if task.version else ""
    return _cut(
        f"lm-evaluation-harness {task.name}{version}, {task.samples:,}{of} questions, "
        f"{task.few_shot}-shot"
    )


def _list_metrics(task: TaskResult) -> tuple[Figure, ...]:
    """Shares are told as the harness tells them: from 0 to 1, without a unit."""
    return tuple(
        Figure(f"{task.name} {metric.name}", metric.value, metric.stderr) for metric in task.metrics
    )


def _cut(text: str) -> str:
    line = " ".join(text.split())
    return line if len(line) <= _LONGEST else f"{line[: _LONGEST - 1]}…"
