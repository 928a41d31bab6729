"""Charts as SVG."""

from __future__ import annotations

import math
from xml.etree import ElementTree

from lfm2_deploy.charts import (
    Band,
    Chart,
    Dot,
    Guide,
    Line,
    linear_axis,
    log_axis,
    render_chart,
)

SVG = "{http://www.w3.org/2000/svg}"


def draw(chart: Chart) -> ElementTree.Element:
    """The element of a chart, as a strict parser reads it."""
    markup = str(render_chart(chart)).replace("<svg", '<svg xmlns="http://www.w3.org/2000/svg"', 1)
    return ElementTree.fromstring(markup)


def make_chart(**parts: object) -> Chart:
    axis = linear_axis("x", [0, 10], most_ticks=3)
    return Chart("what it shows", axis, log_axis("y", [0.01, 1]), **parts)  # type: ignore[arg-type]


def test_line_is_drawn_in_units_of_a_thousand_and_broken_at_nan() -> None:
    points = ((0.0, 1.0), (5.0, 0.1), (6.0, math.nan), (10.0, 0.01))
    element = draw(make_chart(lines=(Line("a", 9, points),)))
    pieces = element.findall(f".//{SVG}polyline")
    assert [piece.get("points") for piece in pieces] == ["0,0 500,500", "1000,1000"]
    # The tenth colour is the second again.
    assert {piece.get("class") for piece in pieces} == {"line s1"}


def test_marks_lie_at_percentages() -> None:
    chart = make_chart(
        dots=(Dot(0, 5, 0.1, "a tip", "square"),),
        guides=(Guide("y", 0.1, "limit"), Guide("x", 2.5, "here")),
        bands=(Band(0, 5),),
    )
    element = draw(chart)
    dot = element.find(f".//{SVG}svg[@class='dot square s0']")
    assert dot is not None
    assert (dot.get("x"), dot.get("y")) == ("50%", "50%")
    assert dot.findtext(f"{SVG}title") == "a tip"
    guides = [g.attrib for g in element.findall(f".//{SVG}line[@class='guide']")]
    assert guides[0]["y1"] == guides[0]["y2"] == "50%"
    assert guides[1]["x1"] == guides[1]["x2"] == "25%"
    band = element.find(f".//{SVG}rect[@class='band']")
    assert band is not None
    assert (band.get("x"), band.get("width")) == ("0%", "50%")


def test_hostile_texts_are_escaped_and_visible() -> None:
    text = "<b>\u202e\ud800&"
    element = draw(
        make_chart(
            dots=(Dot(0, 1, 0.1, text),),
            guides=(Guide("y", 0.1, text),),
        )
    )
    shown = "<b>⟨U+202E⟩⟨U+D800⟩&"
    assert element.findtext(f".//{SVG}title") == shown
    assert [t.text for t in element.findall(f".//{SVG}text")].count(shown) == 1
