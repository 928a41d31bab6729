"""A report -> what is drawn as rows: KL divergences on one axis, and bars of speed and size."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from math import isfinite

from lfm2_deploy.charts import Axis, log_axis
from lfm2_deploy.charts.numbers import format_number
from lfm2_deploy.compare.report.plots import list_divergences
from lfm2_deploy.compare.report.values import LEAST_KLD
from lfm2_deploy.compare.result import Cost, Divergence, Report, SubjectResult
from lfm2_deploy.units import format_bytes


@dataclass(frozen=True, slots=True)
class Strip:
    """One subject's KL divergences on the axis all share; places are 0 to 1.

    `known` is false where the mean is not a number.
    """

    number: int
    name: str
    mean: float
    median: float
    p99: float
    most: float
    tip: str
    known: bool


@dataclass(frozen=True, slots=True)
class Strips:
    """The KL divergences of all subjects; `limit` is where the limit lies."""

    axis: Axis
    strips: tuple[Strip, ...]
    limit: float | None


@dataclass(frozen=True, slots=True)
class Bar:
    """A bar; `share` is its length of the longest, 0 to 1."""

    number: int
    name: str
    share: float
    text: str


@dataclass(frozen=True, slots=True)
class Panel:
    """Bars of one figure of speed or memory."""

    heading: str
    better: str
    bars: tuple[Bar, ...]


def plot_strips(report: Report) -> Strips | None:
    """Mean, median, 99 % and largest of each subject; None where nothing was scored."""
    scored = [*list_divergences(report)]
    if not scored:
        return None
    limit = report.verdict.most_kld
    values = [v for _, _, d in scored for v in (d.median, d.mean.value, d.p99, d.most)]
    axis = log_axis("nats", values + ([limit] if limit else []), least=LEAST_KLD)
    return Strips(
        axis,
        tuple(_make_strip(axis, *one) for one in scored),
        axis.place(limit) if limit else None,
    )


def _make_strip(axis: Axis, number: int, name: str, divergence: Divergence) -> Strip:
    d = divergence
    values = {"mean": d.mean.value, "median": d.median, "99 %": d.p99, "largest": d.most}
    told = ", ".join(f"{label} {format_number(value)}" for label, value in values.items())
    mean, median, p99, most = (axis.place(value) for value in values.values())
    return Strip(number, name, mean, median, p99, most, f"{name}: {told}", isfinite(d.mean.value))


def list_panels(report: Report) -> list[Panel]:
    """Speed, memory and size as bars."""
    panels = [_make_panel(report, *rule) for rule in _PANELS]
    return [panel for panel in panels if panel.bars]


def _make_panel(
    report: Report,
    heading: str,
    better: str,
    pick: Callable[[SubjectResult], float | None],
    write: Callable[[float], str],
) -> Panel:
    found = [
        (number, subject.info.name, value)
        for number, subject in enumerate(report.subjects)
        if (value := pick(subject)) is not None
    ]
    longest = max((value for _, _, value in found), default=0) or 1.0
    bars = tuple(Bar(n, name, value / longest, write(value)) for n, name, value in found)
    return Panel(heading, better, bars)


def _pick_cost(pick: Callable[[Cost], float | None]) -> Callable[[SubjectResult], float | None]:
    return lambda subject: None if subject.cost is None else pick(subject.cost)


def _write_rate(value: float) -> str:
    return f"{format_number(value)} tok/s"


def _write_bytes(value: float) -> str:
    return format_bytes(int(value))


_Rule = tuple[str, str, Callable[[SubjectResult], float | None], Callable[[float], str]]
_PANELS: tuple[_Rule, ...] = (
    ("Decode", "longer is better", _pick_cost(lambda cost: cost.decode), _write_rate),
    ("Prefill", "longer is better", _pick_cost(lambda cost: cost.prefill), _write_rate),
    ("Peak memory", "shorter is better", _pick_cost(lambda cost: cost.peak_bytes), _write_bytes),
    ("Size on disk", "shorter is better", lambda subject: subject.info.size_bytes, _write_bytes),
)
