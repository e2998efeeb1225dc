"""Figures as SVG elements: what is drawn where, without colours, which the page's style gives by class.

A figure is 360 wide, so that its letters keep their size on a telephone; larger screens put figures side by side. The
n-th series has the n-th colour, dashes and sign, so that it can be told without colour.
"""

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from alignment.report.blocks import Bars, Curves, Estimate, Forest, Scatter
from alignment.report.scales import Scale, around, number

Point = tuple[float, float]

WIDTH = 360.0
_HEIGHT = 220.0
_TOP, _RIGHT, _BOTTOM = 12.0, 14.0, 40.0
# Width of a letter of the tick labels, at most.
_LETTER = 6.2
_COLOURS = 8
# More points than pixels are thinned out; fewer than these have a sign each.
_MOST_POINTS = 400
_FEW_POINTS = 24
_ROW, _LABELS = 26.0, 118.0


@dataclass(frozen=True, slots=True)
class Element:
    """An SVG element.

    Attributes:
        tag: its name.
        attributes: numbers are rounded to hundredths.
        text: of a ``text`` element.
        title: shown where the pointer rests.
    """

    tag: str
    attributes: Mapping[str, str | float]
    text: str = ""
    title: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Drawing:
    """A figure.

    Attributes:
        width: of its coordinates.
        height: likewise.
        elements: from back to front.
        summary: what it shows, for who cannot see it.
        left_out: what has no place on it, in words; empty if nothing.
    """

    width: float = WIDTH
    height: float
    elements: Sequence[Element]
    summary: str
    left_out: str = ""


@dataclass(frozen=True, slots=True)
class _Axes:
    x: Scale
    y: Scale
    elements: list[Element]


def series_class(index: int) -> str:
    """The classes of a series: its colour, and its dashes."""
    return f"series c{index % _COLOURS} d{index % 4}"


def sign(index: int, x: float, y: float, title: str = "") -> Element:
    """The sign of a series at a place: a disc, a square, a triangle, a diamond."""
    corners = {
        1: ((-3, -3), (3, -3), (3, 3), (-3, 3)),
        2: ((0, -4), (3.8, 3), (-3.8, 3)),
        3: ((0, -4.2), (4.2, 0), (0, 4.2), (-4.2, 0)),
    }
    classes = f"sign c{index % _COLOURS}"
    if index % 4 == 0:
        return Element("circle", {"cx": x, "cy": y, "r": 3.2, "class": classes}, title=title)
    points = " ".join(f"{x + dx:.2f},{y + dy:.2f}" for dx, dy in corners[index % 4])
    return Element("polygon", {"points": points, "class": classes}, title=title)


def draw_curves(block: Curves) -> Drawing:
    """Lines with their bands; a line ends and begins anew around what has no place on the axes."""
    lines = [_stretches(series.points, block.log) for series in block.series]
    left_out = _describe_dropped(block, sum(len(part) for parts in lines for part in parts))
    every = [point for parts in lines for part in parts for point in part]
    if not every:
        return Drawing(height=0.0, elements=(), summary=block.title, left_out=left_out)
    bands = [
        [item for item in series.band if all(_has_place(y, block.log) for y in item[1:])] for series in block.series
    ]
    ends = [y for band in bands for item in band for y in item[1:]]
    axes = _axes([x for x, _ in every], [*(y for _, y in every), *ends], block)
    for index, band in enumerate(bands):
        if band:
            axes.elements.append(_band(index, band, axes))
    for index, (series, parts) in enumerate(zip(block.series, lines, strict=True)):
        axes.elements.extend(_line(index, series.name, parts, axes))
    said = [f"{series.name}: {_first_and_last(parts)}" for series, parts in zip(block.series, lines, strict=True)]
    scale = ", logarithmic" if block.log else ""
    summary = f"{block.title}{scale}, by {block.x}. {'; '.join(said)}."
    return Drawing(height=_HEIGHT, elements=axes.elements, summary=summary, left_out=left_out)


def draw_scatter(block: Scatter) -> Drawing:
    """Points, and marks of both axes."""
    points = [point for series in block.series for point in series.points if all(map(math.isfinite, point))]
    if not points:
        return Drawing(height=0.0, elements=(), summary=block.title)
    # No sign stands on an axis.
    xs = around([x for x, _ in points] + [mark.value for mark in block.upright])
    axes = _axes(xs, [y for _, y in points] + [mark.value for mark in block.across], block)
    for index, series in enumerate(block.series):
        for x, y in series.points:
            if math.isfinite(x) and math.isfinite(y):
                axes.elements.append(sign(index, axes.x(x), axes.y(y), title=f"{number(x)}, {number(y)}"))
    summary = f"{block.title}: {len(points)} points, {block.y} against {block.x}. {block.caption}"
    return Drawing(height=_HEIGHT, elements=axes.elements, summary=summary.strip())


def draw_bars(block: Bars) -> Drawing:
    """Horizontal bars from zero, a row each, with whiskers and their numbers."""
    shown = [estimate for _, estimates in block.groups for estimate in estimates if estimate is not None]
    ends = [end for estimate in shown for end in (estimate.value, estimate.high) if end is not None]
    is_single = len(block.names) == 1
    labels = [label for label, _ in block.groups] if is_single else list(block.names)
    left = min(_LABELS, 12.0 + _LETTER * max(len(label) for label in labels))
    high = block.end if block.end is not None else around([0.0, *ends])[1]
    x = Scale(0.0, high, left, WIDTH - 52.0)
    bars: list[Element] = []
    top = 20.0 if block.upright else 6.0
    y = top
    for label, estimates in block.groups:
        if not is_single:
            bars.append(_text(0.0, y + 14.0, label, "group"))
            y += 20.0
        for index, estimate in enumerate(estimates):
            if estimate is not None:
                name = label if is_single else block.names[index]
                bars.extend(_bar(index, name, estimate, x, y))
                y += _ROW
        y += 0.0 if is_single else 6.0
    axis = _ticks_below(x, top, y)
    for mark in block.upright:
        axis.append(_text(x(mark.value), 12.0, mark.label, "mark", anchor="middle"))
        bars.append(_rule(x(mark.value), top - 4.0, x(mark.value), y, "mark"))
    said = [
        f"{label}{'' if is_single else f', {name}'}: {_describe(estimate)}"
        for label, estimates in block.groups
        for name, estimate in zip(block.names, estimates, strict=True)
        if estimate is not None
    ]
    return Drawing(height=y + 20.0, elements=[*axis, *bars], summary=f"{block.title}. {'; '.join(said)}.")


def draw_forest(block: Forest) -> Drawing:
    """A row for each estimate: its interval, its sign, and a small ring at each of the values behind it."""
    shown = [(label, estimate, values) for label, estimate, values in block.rows if estimate is not None]
    if not shown:
        return Drawing(height=0.0, elements=(), summary=block.title)
    ends = [end for _, it, values in shown for end in (it.value, it.low, it.high, *values) if end is not None]
    left = min(_LABELS, 12.0 + _LETTER * max(len(label) for label, _, _ in shown))
    x = Scale(*around([*ends, *(mark.value for mark in block.upright)]), left, WIDTH - 52.0)
    top = 20.0 if block.upright else 6.0
    bottom = top + _ROW * len(shown)
    elements = _ticks_below(x, top, bottom)
    for mark in block.upright:
        elements.append(_text(x(mark.value), 12.0, mark.label, "mark", anchor="middle"))
        elements.append(_rule(x(mark.value), top - 4.0, x(mark.value), bottom, "mark"))
    for index, (label, estimate, values) in enumerate(shown):
        middle = top + _ROW * (index + 0.5)
        elements.append(_label(label, x.start, middle))
        for value in values:
            ring: dict[str, str | float] = {"cx": x(value), "cy": middle, "r": 2.6, "class": "ring"}
            elements.append(Element("circle", ring, title=f"{label}: {number(value)}"))
        elements.extend(_whisker(estimate, x, middle))
        elements.append(sign(0, x(estimate.value), middle, title=f"{label}: {_describe(estimate)}"))
        elements.append(_text(WIDTH - 46.0, middle + 4.0, _short(estimate.value), "value"))
    said = [f"{label}: {_describe(estimate)}" for label, estimate, _ in shown]
    return Drawing(height=bottom + 20.0, elements=elements, summary=f"{block.title}. {'; '.join(said)}.")


def _has_place(value: float, log: bool) -> bool:
    return math.isfinite(value) and (value > 0.0 or not log)


def _stretches(points: Sequence[Point], log: bool) -> list[list[Point]]:
    """The points that have a place, divided where one between them has none."""
    parts: list[list[Point]] = [[]]
    for point in points:
        if _has_place(point[1], log):
            parts[-1].append(point)
        elif parts[-1]:
            parts.append([])
    return [part for part in parts if part]


def _describe_dropped(block: Curves, num_drawn: int) -> str:
    points = [point for series in block.series for point in series.points]
    if len(points) == num_drawn:
        return ""
    reasons = {
        "not a finite number": [x for x, y in points if not math.isfinite(y)],
        "zero or less, on a logarithmic axis": [x for x, y in points if block.log and math.isfinite(y) and y <= 0.0],
    }
    said = [
        f"{len(places)} not drawn for being {why}, first at {block.x} {number(places[0])}"
        for why, places in reasons.items()
        if places
    ]
    return f"{'; '.join(said)}."


def _first_and_last(parts: Sequence[Sequence[Point]]) -> str:
    if not parts:
        return "nothing"
    (first, start), (last, end) = parts[0][0], parts[-1][-1]
    return f"from {number(start)} at {number(first)} to {number(end)} at {number(last)}"


def _describe(estimate: Estimate) -> str:
    if estimate.low is None or estimate.high is None:
        return number(estimate.value)
    return f"{number(estimate.value)} ({number(estimate.low)} to {number(estimate.high)})"


def _axes(xs: Iterable[float], ys: Iterable[float], block: Curves | Scatter) -> _Axes:
    """Scales that show all values, with ticks, names and marks drawn."""
    xs, is_log = list(xs), isinstance(block, Curves) and block.log
    y_name = block.y if isinstance(block, Scatter) else ""
    low, high = (min(xs), max(xs)) if min(xs) < max(xs) else around(xs)
    y = Scale(*around(ys, log=is_log), _HEIGHT - _BOTTOM, _TOP + (14.0 if y_name else 0.0), is_log)
    labels = {tick: number(tick) for tick in y.ticks(5)}
    left, right = 10.0 + _LETTER * max(len(label) for label in labels.values()), WIDTH - _RIGHT
    x = Scale(low, high, left, right)
    elements = [_text(0.0, 12.0, y_name, "name")] if y_name else []
    for tick, label in labels.items():
        elements.append(_rule(left, y(tick), right, y(tick), "grid"))
        elements.append(_text(left - 6.0, y(tick) + 4.0, label, "tick", anchor="end"))
    for tick in x.ticks(5):
        elements.append(_rule(x(tick), y.start, x(tick), y.start + 4.0, "axis"))
        elements.append(_text(x(tick), y.start + 17.0, number(tick), "tick", anchor="middle"))
    elements.append(_rule(left, y.start, right, y.start, "axis"))
    elements.append(_text((left + right) / 2, _HEIGHT - 6.0, block.x, "name", anchor="middle"))
    for mark in block.across:
        if y.low <= mark.value <= y.high:
            elements.append(_rule(left, y(mark.value), right, y(mark.value), "mark"))
            elements.append(_text(right, y(mark.value) - 4.0, mark.label, "mark", anchor="end"))
    for mark in block.upright:
        if x.low <= mark.value <= x.high:
            elements.append(_rule(x(mark.value), y.end, x(mark.value), y.start, "mark"))
            elements.append(_text(x(mark.value) + 4.0, y.end + 9.0, mark.label, "mark"))
    return _Axes(x, y, [element for element in elements if element.tag != "text" or element.text])


def _line(index: int, name: str, parts: Sequence[Sequence[Point]], axes: _Axes) -> Iterable[Element]:
    is_sparse = sum(map(len, parts)) <= _FEW_POINTS
    path = " ".join(
        f"{'L' if n else 'M'}{axes.x(x):.2f} {axes.y(y):.2f}"
        for part in parts
        for n, (x, y) in enumerate(_thinned(part))
    )
    yield Element("path", {"d": path, "class": series_class(index)})
    marked = [point for part in parts for point in part] if is_sparse else [part[-1] for part in parts[-1:]]
    for x, y in marked:
        yield sign(index, axes.x(x), axes.y(y), title=f"{name}, {number(x)}: {number(y)}")


def _thinned(points: Sequence[Point]) -> Sequence[Point]:
    """The first, lowest, highest and last of each stretch: peaks stay."""
    if len(points) <= _MOST_POINTS:
        return points
    length = math.ceil(4 * len(points) / _MOST_POINTS)
    kept: list[Point] = []
    for start in range(0, len(points), length):
        stretch = points[start : start + length]
        ends = {stretch[0], min(stretch, key=lambda point: point[1]), max(stretch, key=lambda point: point[1])}
        kept.extend(sorted(ends | {stretch[-1]}))
    return kept


def _band(index: int, band: Sequence[tuple[float, float, float]], axes: _Axes) -> Element:
    # There along the lower ends, back along the upper ones.
    corners = [(x, low) for x, low, _ in band] + [(x, high) for x, _, high in reversed(band)]
    points = " ".join(f"{axes.x(x):.2f},{axes.y(y):.2f}" for x, y in corners)
    return Element("polygon", {"points": points, "class": f"band c{index % _COLOURS}"})


def _bar(index: int, name: str, estimate: Estimate, x: Scale, top: float) -> Iterable[Element]:
    middle = top + _ROW / 2
    yield _label(name, x.start, middle)
    width = max(0.0, x(estimate.value) - x.start)
    box: dict[str, str | float] = {
        "x": x.start,
        "y": top + 5.0,
        "width": width,
        "height": _ROW - 10.0,
        "class": f"bar c{index % _COLOURS}",
    }
    yield Element("rect", box, title=f"{name}: {_describe(estimate)}")
    yield from _whisker(estimate, x, middle)
    end = estimate.value if estimate.low is None or estimate.high is None else max(estimate.high, estimate.value)
    yield _text(x(end) + 6.0, middle + 4.0, _short(estimate.value), "value")


def _label(name: str, end: float, middle: float) -> Element:
    """The name of a row, cut where it is too long; whole where the pointer rests."""
    most = int((end - 8.0) / _LETTER)
    short = name if len(name) <= most else f"{name[: most - 1]}…"
    return _text(end - 8.0, middle + 4.0, short, "tick", anchor="end", title=name)


def _whisker(estimate: Estimate, x: Scale, middle: float) -> Iterable[Element]:
    if estimate.low is not None and estimate.high is not None:
        low, high = x(estimate.low), x(estimate.high)
        yield _rule(low, middle, high, middle, "whisker")
        for place in (low, high):
            yield _rule(place, middle - 4.0, place, middle + 4.0, "whisker")


def _ticks_below(x: Scale, top: float, bottom: float) -> list[Element]:
    """Lines of the grid, and their numbers below."""
    return [
        element
        for tick in x.ticks(5)
        for element in (
            _rule(x(tick), top, x(tick), bottom, "grid"),
            _text(x(tick), bottom + 14.0, number(tick), "tick", anchor="middle"),
        )
    ]


def _short(value: float) -> str:
    return f"{value:.3f}" if abs(value) < 10.0 else number(value)


def _rule(x1: float, y1: float, x2: float, y2: float, classes: str) -> Element:
    return Element("line", {"x1": x1, "y1": y1, "x2": x2, "y2": y2, "class": classes})


def _text(x: float, y: float, text: str, classes: str, *, anchor: str = "start", title: str = "") -> Element:
    return Element("text", {"x": x, "y": y, "class": classes, "text-anchor": anchor}, text=text, title=title)
