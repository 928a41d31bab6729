"""What a page's charts show."""

from __future__ import annotations

import math
from dataclasses import replace
from statistics import fmean

from lfm2_deploy.compare.report import bars, plots, state_plots, table
from lfm2_deploy.compare.result import Report, StateErrors, SubjectResult

from .made_up import make_report
from .pages import read_page


def find_figure(report: Report, heading: str) -> plots.Figure:
    return next(figure for figure in plots.plot_scores(report) if figure.heading == heading)


def test_survival_goes_from_all_positions_to_one_in_a_thousand() -> None:
    report = make_report(("int4",))
    scores = report.subjects[0].scores
    assert scores is not None
    (line,) = find_figure(report, "How the divergence is spread").chart.lines
    assert line.points[0] == (scores.divergence.percentiles[0], 1.0)
    assert line.points[50] == (scores.divergence.median, 0.5)
    assert line.points[-1] == (scores.divergence.p999, 1e-3)


def test_positions_are_means_of_neighbours_over_the_scored_half() -> None:
    report = make_report(("int4",))
    scores = report.subjects[0].scores
    assert scores is not None
    chart = find_figure(report, "By position in the window").chart
    (line,) = chart.lines
    # 255 positions in 64 runs: three, then four at a time.
    assert len(line.points) == 64
    assert line.points[0] == (257.0, fmean(scores.divergence.by_position[:3]))
    assert (chart.x.low, chart.x.high) == (256, 510)


def test_size_against_divergence_needs_two_sizes() -> None:
    heading = "What the size buys"
    chart = find_figure(make_report(("int8", "int4")), heading).chart
    assert [round(dot.x) for dot in chart.dots] == [372, 223]
    assert [guide.value for guide in chart.guides] == [0.1]
    assert heading not in [figure.heading for figure in plots.plot_scores(make_report(("int4",)))]


def test_sizes_have_their_names_in_a_legend_and_dots_that_are_seen_upon_each_other() -> None:
    report = make_report(("int8", "int4", "npu"))
    figure = find_figure(report, "What the size buys")
    names = [subject.info.name for subject in report.subjects]
    assert [words.partition(": ")[0] for _, words in figure.legend] == names
    assert "MB, " in figure.legend[0][1]
    assert figure.marks == ("circle", "square", "diamond")
    assert tuple(dot.shape for dot in figure.chart.dots) == figure.marks


def test_states_are_one_line_a_subject_and_a_ring_at_the_start() -> None:
    short, long = state_plots.plot_states(make_report(("int8", "broken", "npu")))
    assert (short.heading, long.heading) == ("After 8 tokens", "After 511 tokens")
    assert [line.name for line in short.chart.lines] == ["cpu-int8", "directml-int4"]
    (ring,) = [dot for dot in short.chart.dots if dot.shape == "ring"]
    assert (ring.series, ring.x) == (1, 5)
    shapes = {dot.shape for dot in short.chart.dots if dot.x == 5}
    assert shapes == {"square", "diamond", "ring"}
    assert {dot.shape for dot in short.chart.dots if dot.x == 0} == {"circle"}
    assert len(short.chart.bands) == 6
    # Both charts have one scale, to be compared.
    assert short.chart.y == long.chart.y


def test_rounding_is_drawn_of_those_who_recorded_it() -> None:
    figure = state_plots.plot_rounding(make_report(("npu", "int4")))
    assert figure is not None
    assert figure.legend == ((1, "cpu-int4"),)
    assert state_plots.plot_rounding(make_report(("npu",))) is None


def test_errors_of_weights_are_not_drawn_beside_those_of_products_and_are_named() -> None:
    report = make_report(("npu", "int4"))
    first, *rest = report.subjects
    report = replace(report, subjects=(replace(first, rounded_without_text=True), *rest))
    figure = state_plots.plot_rounding(report)
    assert figure is not None
    assert figure.legend == ((1, "cpu-int4"),)
    assert f"Not drawn: {first.info.name}, rounded without a text" in figure.caption


def test_bars_are_shares_of_the_longest() -> None:
    decode, *others = bars.list_panels(make_report(("int8", "int4")))
    assert decode.heading == "Decode"
    assert decode.bars[0].share == 1
    assert 0.7 < decode.bars[1].share < 0.8
    assert [panel.heading for panel in others] == ["Prefill", "Peak memory", "Size on disk"]
    assert bars.list_panels(make_report(("failed",)))[0].heading == "Size on disk"


def make_nan(subject: SubjectResult) -> SubjectResult:
    """The subject, had its logits not been numbers."""
    assert subject.scores is not None
    assert subject.states is not None
    nan = math.nan
    divergence = replace(
        subject.scores.divergence,
        mean=replace(subject.scores.divergence.mean, value=nan, error=nan),
        median=nan,
        p99=nan,
        p999=nan,
        most=nan,
        percentiles=(nan,) * 101,
        by_window=(nan,) * 64,
        by_position=(nan,) * 255,
    )
    rows = tuple(
        replace(row, errors=tuple(replace(error, error=nan) for error in row.errors))
        for row in subject.states.rows
    )
    return replace(
        subject,
        scores=replace(subject.scores, divergence=divergence),
        states=StateErrors(rows, None),
        worst=tuple(replace(place, divergence=nan) for place in subject.worst),
    )


def test_logits_that_are_no_numbers_are_shown_as_such() -> None:
    report = make_report(("int8", "int4"))
    report = replace(report, subjects=(report.subjects[0], make_nan(report.subjects[1])))
    page = read_page(report)
    assert "nan%" not in page.html
    assert "nan," not in page.html
    assert "not a number" in page.text
    kld = table.list_columns(report)[0]
    assert [cell.text for cell in kld.cells][1] == "NaN"
    # A state that is no number lies at the top, where the worst are.
    _, long = state_plots.plot_states(report)
    assert {long.chart.y.place(dot.y) for dot in long.chart.dots if dot.series == 1} == {1.0}


def test_columns_that_nobody_has_are_left_out() -> None:
    assert [column.name for column in table.list_columns(make_report(("failed",)))] == ["size"]
    names = [column.name for column in table.list_columns(make_report(("int4", "failed")))]
    assert names[:2] == ["KL divergence", "median"]
    (kld, *_) = table.list_columns(make_report(("int4", "failed")))
    assert kld.cells[1].text == "\N{EN DASH}"
