"""What an evaluation found, as values and as JSON."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True, slots=True)
class Metric:
    """One figure of a task.

    Args:
        name: such as "acc".
        filter: how answers were read before they were judged; "none" where they were not.
        value: the figure.
        stderr: its standard error; None where there is none.
        higher_is_better: None where the task does not say.
    """

    name: str
    filter: str
    value: float
    stderr: float | None
    higher_is_better: bool | None


@dataclass(frozen=True, slots=True)
class TaskResult:
    """One task, or a group of tasks taken together.

    Args:
        name: the harness's.
        version: of the task's definition; "" where it has none.
        few_shot: examples in front of each question.
        samples: questions that were asked; of a group, of all its tasks.
        total: questions there are.
        metrics: in the task's order.
        tasks: of a group, the names of its tasks.
    """

    name: str
    version: str
    few_shot: int
    samples: int
    total: int
    metrics: tuple[Metric, ...]
    tasks: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Evaluation:
    """All tasks of a run.

    Args:
        tasks: groups after the tasks they consist of.
        notes: what a reader should know, such as prompts that were cut.
        seconds: of the model's work and the harness's, without loading.
        tokens_asked: tokens of all texts to score, had each been read on its own.
        tokens_read: tokens that the model really read for that.
        settings: how it was run: few-shot, limit, batch size, seeds.
        versions: of the packages that decide the figures.
    """

    tasks: tuple[TaskResult, ...]
    notes: tuple[str, ...]
    seconds: float
    tokens_asked: int
    tokens_read: int
    settings: Mapping[str, Any]
    versions: Mapping[str, str]


def read_results(raw: Mapping[str, Any]) -> tuple[TaskResult, ...]:
    """The harness's `EvalResults` -> tasks, then groups.

    Args:
        raw: what `lm_eval.evaluator.evaluate` returns.
    """
    groups = raw.get("group_subtasks", {})
    # A group that has no figure of its own is only a name for its tasks.
    tasks = [name for name in raw["results"] if name not in groups]
    named = [name for name in raw["results"] if name in groups and _read_metrics(raw, name)]
    return tuple(_read_task(raw, name) for name in (*tasks, *named))


def _read_task(raw: Mapping[str, Any], name: str) -> TaskResult:
    children = tuple(raw.get("group_subtasks", {}).get(name, ()))
    counts = [raw["n-samples"][leaf] for leaf in _list_leaves(raw, name)]
    version = raw.get("versions", {}).get(name)
    return TaskResult(
        name=name,
        version="" if version in (None, "N/A") else str(version),
        few_shot=int(raw.get("n-shot", {}).get(name) or 0),
        samples=sum(count["effective"] for count in counts),
        total=sum(count["original"] for count in counts),
        metrics=_read_metrics(raw, name),
        tasks=children,
    )


def _list_leaves(raw: Mapping[str, Any], name: str) -> list[str]:
    children = raw.get("group_subtasks", {}).get(name)
    if not children:
        return [name] if name in raw["n-samples"] else []
    leaves = [leaf for child in children for leaf in _list_leaves(raw, child)]
    return list(dict.fromkeys(leaves))


def _read_metrics(raw: Mapping[str, Any], name: str) -> tuple[Metric, ...]:
    """Figures are told as "acc,none", and beside it "acc_stderr,none", perhaps "N/A"."""
    figures, better = raw["results"][name], raw.get("higher_is_better", {}).get(name, {})
    metrics = []
    for key, value in figures.items():
        metric, comma, filtered = key.rpartition(",")
        if not comma or metric.endswith("_stderr") or not isinstance(value, int | float):
            continue
        stderr = figures.get(f"{metric}_stderr,{filtered}")
        error = float(stderr) if isinstance(stderr, int | float) else None
        metrics.append(Metric(metric, filtered, float(value), error, better.get(metric)))
    return tuple(metrics)
