"""What a page is composed of: titled sections of blocks, each a frozen dataclass of plain values.

A page of evaluation, of cross-play or of an ablation is made of the same blocks; :mod:`alignment.report.page` renders
them. A block holds text as it is: whatever a model wrote is escaped where it is rendered.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

Cell = str | float | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Estimate:
    """A number and the ends of its interval; ``None`` where it has none."""

    value: float
    low: float | None = None
    high: float | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Series:
    """A line or a cloud of points.

    Attributes:
        name: as the legend says it.
        points: (x, y) in the order of x; a y that is not finite leaves a gap.
        band: (x, low, high), an interval around the line.
    """

    name: str
    points: Sequence[tuple[float, float]]
    band: Sequence[tuple[float, float, float]] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Mark:
    """A dotted line at a value of an axis."""

    value: float
    label: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Curves:
    """Lines over a common horizontal axis, with their figures under a fold.

    Attributes:
        title: what is drawn.
        x: name of the horizontal axis.
        series: a line each; all share both axes.
        caption: how to read it.
        log: a logarithmic vertical axis; what is not above zero has no place on it, and the caption says so.
        across: marks of the vertical axis, such as a win rate of one half.
        upright: marks of the horizontal axis, such as where a round begins.
    """

    title: str
    x: str
    series: Sequence[Series]
    caption: str = ""
    log: bool = False
    across: Sequence[Mark] = ()
    upright: Sequence[Mark] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Scatter:
    """Points of two quantities; the attributes are those of :class:`Curves`, and ``y`` names the vertical axis."""

    title: str
    x: str
    y: str
    series: Sequence[Series]
    caption: str = ""
    across: Sequence[Mark] = ()
    upright: Sequence[Mark] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Bars:
    """Bars with whiskers, from zero.

    Attributes:
        title: what is drawn.
        groups: (label, estimates in the order of ``names``); ``None`` leaves a bar out.
        names: of the bars of a group; one name makes a single series, which is not named again.
        caption: how to read it.
        upright: marks of the axis.
        end: of the axis; ``None`` for what the values need.
    """

    title: str
    groups: Sequence[tuple[str, Sequence[Estimate | None]]]
    names: Sequence[str]
    caption: str = ""
    upright: Sequence[Mark] = ()
    end: float | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Forest:
    """Estimates with their intervals, a row each, and the values behind them, on an axis that need not hold zero.

    Attributes:
        title: what is drawn.
        rows: (label, estimate, values); ``None`` where there is no estimate.
        caption: how to read it.
        upright: marks of the axis.
    """

    title: str
    rows: Sequence[tuple[str, Estimate | None, Sequence[float]]]
    caption: str = ""
    upright: Sequence[Mark] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Matrix:
    """Numbers of rows against columns, tinted by their distance from ``centre``.

    Attributes:
        title: what is shown.
        corner: what rows and columns are.
        rows: their names.
        columns: their names.
        cells: [rows][columns]; ``None`` where there is no number.
        centre: above it the row is ahead.
        caption: how to read it.
    """

    title: str
    corner: str
    rows: Sequence[str]
    columns: Sequence[str]
    cells: Sequence[Sequence[Estimate | None]]
    centre: float = 0.5
    caption: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Table:
    """Rows under headings; the first column names the row, numbers are set to the right.

    Attributes:
        title: what is shown; empty for a table that follows its section's heading.
        columns: headings.
        rows: a cell for each column; ``None`` where there is nothing.
        caption: how to read it.
    """

    title: str
    columns: Sequence[str]
    rows: Sequence[Sequence[Cell]]
    caption: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Sample:
    """Two answers to a prompt, and who preferred which.

    Attributes:
        prompt: the question.
        left: the answer that is examined.
        right: what it is held against.
        win: probability that ``left`` is preferred.
        members: the same by each member of a panel.
    """

    prompt: str
    left: str
    right: str
    win: float
    members: Sequence[tuple[str, float]] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Samples:
    """Answers side by side; ``left`` and ``right`` say whose."""

    title: str
    left: str
    right: str
    samples: Sequence[Sample]
    caption: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Code:
    """Text of fixed width, such as a recipe; ``folded`` shows it only when asked for."""

    title: str
    text: str
    folded: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Fact:
    """A figure that stands out: what it is, how much, and what to hold it against."""

    label: str
    value: str
    note: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Facts:
    """A few figures in large type."""

    facts: Sequence[Fact]


@dataclass(frozen=True, slots=True, kw_only=True)
class Note:
    """A sentence: a warning, or what is not there and how to get it."""

    text: str
    kind: Literal["note", "warning", "missing"] = "note"


@dataclass(frozen=True, slots=True, kw_only=True)
class Fold:
    """Blocks that are shown when asked for."""

    title: str
    blocks: Sequence["Block"]


Block = Curves | Scatter | Bars | Forest | Matrix | Table | Samples | Code | Facts | Note | Fold


@dataclass(frozen=True, slots=True, kw_only=True)
class Section:
    """Blocks under a heading."""

    title: str
    blocks: Sequence[Block]


@dataclass(frozen=True, slots=True, kw_only=True)
class Page:
    """One file.

    Attributes:
        title: the heading.
        kind: what the page is, above the heading.
        lead: a line below it.
        sections: linked from the top.
    """

    title: str
    kind: str
    lead: str
    sections: Sequence[Section]
