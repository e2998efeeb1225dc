"""Where things stand on a figure: values worked out by hand from the sizes of the figure."""

import math
import re
from collections.abc import Sequence

import pytest

from alignment.report.blocks import Bars, Curves, Estimate, Forest, Mark, Scatter, Series
from alignment.report.drawings import Drawing, Element, draw_bars, draw_curves, draw_forest, draw_scatter


def curves(*points: Sequence[tuple[float, float]], log: bool = False, **options: object) -> Curves:
    series = [Series(name=f"run {number}", points=item) for number, item in enumerate(points)]
    return Curves(title="gap", x="iteration", series=series, log=log, **options)  # type: ignore[arg-type]


def found(drawing: Drawing, tag: str, classes: str = "") -> list[Element]:
    return [
        element
        for element in drawing.elements
        if element.tag == tag and set(classes.split()) <= set(str(element.attributes["class"]).split())
    ]


def path_of(drawing: Drawing, index: int = 0) -> str:
    return str(found(drawing, "path", "series")[index].attributes["d"])


def points_of(path: str) -> list[tuple[float, float]]:
    return [(float(x), float(y)) for x, y in re.findall(r"[ML]([-\d.]+) ([-\d.]+)", path)]


def test_a_gap_that_falls_by_the_same_factor_is_a_straight_line() -> None:
    """The axis ends half a tenth of the range, 0.1 decades, beyond 1e-1 and 1e-3, between y = 12 and y = 180.

    So a decade is 168/2.2 px: the points lie 0.1, 1.1 and 2.1 decades below the top. Tick labels are at most five
    letters of 6.2 px and 10 px of air: x runs from 41 to 346, and iteration 20 of 40 is in the middle.
    """
    drawing = draw_curves(curves([(0, 0.1), (20, 0.01), (40, 0.001)], log=True))
    decade = 168.0 / 2.2
    expected = [(41.0, 12 + 0.1 * decade), (193.5, 12 + 1.1 * decade), (346.0, 12 + 2.1 * decade)]
    assert points_of(path_of(drawing)) == [pytest.approx(point, abs=0.01) for point in expected]
    labels = {text.text: text.attributes["y"] for text in found(drawing, "text", "tick")}
    assert labels["0.01"] == pytest.approx(12 + 1.1 * decade + 4.0)


def test_a_larger_value_stands_higher() -> None:
    (_, low), (_, high) = points_of(path_of(draw_curves(curves([(0, 1.0), (1, 2.0)]))))
    assert high < low


def test_nan_breaks_the_line_and_is_said() -> None:
    drawing = draw_curves(curves([(0, 1.0), (1, 2.0), (2, math.nan), (3, 2.0), (4, math.inf), (5, 1.0)]))
    assert re.sub(r"[^ML]", "", path_of(drawing)) == "MLMM"
    assert drawing.left_out == "2 not drawn for being not a finite number, first at iteration 2."


def test_zero_has_no_place_on_a_logarithmic_axis_and_is_said() -> None:
    drawing = draw_curves(curves([(0, 1.0), (1, 0.0), (2, 0.1)], log=True))
    assert re.sub(r"[^ML]", "", path_of(drawing)) == "MM"
    assert drawing.left_out == "1 not drawn for being zero or less, on a logarithmic axis, first at iteration 1."


@pytest.mark.parametrize("points", [[], [(0, math.nan)]])
def test_nothing_to_draw_is_no_figure(points: list[tuple[float, float]]) -> None:
    assert not draw_curves(curves(points)).elements


def test_a_single_point_has_axes() -> None:
    drawing = draw_curves(curves([(5, 0.3)]))
    assert len(found(drawing, "text", "tick")) >= 2


def test_series_differ_without_colour() -> None:
    drawing = draw_curves(curves(*[[(0, n), (1, n + 1)] for n in range(4)]))
    dashes = {str(path.attributes["class"]).split()[-1] for path in found(drawing, "path", "series")}
    assert len(dashes) == 4
    signs = [element for element in drawing.elements if "sign" in str(element.attributes["class"])]
    shapes = {len(str(item.attributes.get("points", "")).split()) for item in signs}
    assert shapes == {0, 3, 4}, "discs, triangles, squares and diamonds"


def test_a_long_line_is_thinned_out_and_keeps_its_peak() -> None:
    points = [(float(n), 1.0) for n in range(10_000)]
    points[4321] = (4321.0, 9.0)
    drawn = points_of(path_of(draw_curves(curves(points))))
    assert len(drawn) <= 800
    assert min(y for _, y in drawn) < 30.0, "the peak"
    assert drawn == sorted(drawn), "left to right"


def test_a_band_goes_there_along_its_lower_ends_and_back_along_the_upper() -> None:
    series = Series(name="rate", points=[(0, 0.5), (1, 0.5)], band=[(0, 0.4, 0.6), (1, 0.3, 0.7)])
    (band,) = found(draw_curves(Curves(title="t", x="x", series=[series])), "polygon", "band")
    corners = [tuple(map(float, pair.split(","))) for pair in str(band.attributes["points"]).split()]
    xs, ys = zip(*corners, strict=True)
    assert xs[0] == xs[3] < xs[1] == xs[2]
    assert ys[1] > ys[0] > ys[3] > ys[2]


def test_the_summary_says_the_ends_of_each_line() -> None:
    drawing = draw_curves(curves([(0, 0.1124), (400, 0.0054)], log=True))
    assert drawing.summary == "gap, logarithmic, by iteration. run 0: from 0.1124 at 0 to 0.0054 at 400."


def test_marks_outside_the_axis_are_not_drawn() -> None:
    marks = (Mark(value=0.5, label="even"), Mark(value=3.0, label="far"))
    drawing = draw_curves(curves([(0, 0.2), (1, 0.9)], across=marks))
    assert [text.text for text in found(drawing, "text", "mark")] == ["even"]


def test_bars_are_as_long_as_their_values() -> None:
    """Labels of five letters end at 43 px, the axis at 308: half of it is 132.5 px."""
    block = Bars(
        title="t", groups=[("a bar", [Estimate(value=0.5)]), ("b", [Estimate(value=1.0)])], names=["x"], end=1.0
    )
    widths = [bar.attributes["width"] for bar in found(draw_bars(block), "rect")]
    assert widths == pytest.approx([132.5, 265.0])


def test_a_whisker_spans_the_interval() -> None:
    estimate = Estimate(value=0.5, low=0.25, high=0.75)
    (line, *_) = found(
        draw_bars(Bars(title="t", groups=[("a bar", [estimate])], names=["x"], end=1.0)), "line", "whisker"
    )
    assert (line.attributes["x1"], line.attributes["x2"]) == pytest.approx((43 + 265 / 4, 43 + 265 * 3 / 4))


def test_a_missing_bar_is_left_out() -> None:
    block = Bars(title="t", groups=[("g", [None, Estimate(value=0.3)])], names=["a", "b"])
    assert len(found(draw_bars(block), "rect")) == 1


def test_a_forest_shows_intervals_below_zero_and_the_values_behind_them() -> None:
    """The axis is the range with 5 % of air: 43 px at -1.1, 308 px at 1.1. A row without an estimate is left out."""
    estimate = Estimate(value=0.5, low=-1.0, high=1.0)
    rows = [("a row", estimate, [0.0, 1.0]), ("b", None, [])]
    drawing = draw_forest(Forest(title="t", rows=rows, upright=(Mark(value=0.0, label="even"),)))
    pixel = 265.0 / 2.2
    (line, *_) = found(drawing, "line", "whisker")
    assert (line.attributes["x1"], line.attributes["x2"]) == pytest.approx((43 + 0.1 * pixel, 308 - 0.1 * pixel))
    rings = [ring.attributes["cx"] for ring in found(drawing, "circle", "ring")]
    assert rings == pytest.approx([43 + 1.1 * pixel, 43 + 2.1 * pixel])
    (mean,) = found(drawing, "circle", "sign")
    assert mean.attributes["cx"] == pytest.approx(43 + 1.6 * pixel)
    assert "a row: 0.5 (-1 to 1)" in drawing.summary


def test_points_that_are_no_numbers_are_not_scattered() -> None:
    series = Series(name="s", points=[(0, 0.5), (1, math.nan), (2, 0.7)])
    drawing = draw_scatter(Scatter(title="t", x="x", y="y", series=[series]))
    assert len(found(drawing, "circle", "sign")) == 2
