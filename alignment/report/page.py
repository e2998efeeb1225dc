"""A page as one HTML file: no script, nothing loaded from elsewhere, every text escaped."""

import os
import re
from collections.abc import Mapping, Sequence
from contextlib import suppress
from functools import cache
from pathlib import Path
from typing import Any

import jinja2

from alignment.errors import UserError
from alignment.report.blocks import Block, Cell, Curves, Estimate, Forest, Matrix, Page
from alignment.report.drawings import Element, draw_bars, draw_curves, draw_forest, draw_scatter, series_class, sign
from alignment.report.scales import number

PAGE = "report.html"
# Rows of the figures under a curve; more are thinned out evenly.
_MOST_ROWS = 40
# The strongest tint of a cell, in per cent: text on it stays readable.
_MOST_TINT = 48.0


def render(page: Page) -> str:
    """The page as HTML."""
    return _environment().get_template("page.html").render(page=page)


def render_figure(block: Forest) -> str:
    """A figure by itself as SVG, for a paper."""
    return _environment().get_template("figure.svg").render(title=block.title, drawn=draw_forest(block))


def write_page(page: Page, path: Path) -> Path:
    """Render a page into a file; a reader sees the old one or the new one, never half of it.

    Returns:
        The file.

    Raises:
        UserError: if the path is a folder.
    """
    if path.is_dir():
        raise UserError(f"{path}: expected a file for the page, found a folder; write {path / PAGE}")
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f"{path.name}.partial")
    try:
        partial.write_text(render(page), encoding="utf-8")
        os.replace(partial, path)
    except OSError as error:
        # The partial file is nobody's: what was asked for is named.
        raise OSError(error.errno, error.strerror, str(path)) from None
    finally:
        with suppress(OSError):
            partial.unlink()
    return path


@cache
def _environment() -> jinja2.Environment:
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(Path(__file__).parent / "templates"),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {
        "kind": _kind,
        "number": number,
        "cell": _cell,
        "is_number": _is_number,
        "anchor": _anchor,
        "tint": _tint,
        "settled": _settled,
        "attributes": _attributes,
        "percent": _percent,
    }
    environment.globals |= {
        "draw_curves": draw_curves,
        "draw_scatter": draw_scatter,
        "draw_bars": draw_bars,
        "draw_forest": draw_forest,
        "series_class": series_class,
        "sign": sign,
        "rows_of": _rows_of,
        "evenly": _evenly,
    }
    return environment


def _kind(block: Block) -> str:
    """The name of a block's macro."""
    return type(block).__name__.lower()


def _cell(value: Cell) -> str:
    if value is None:
        return "–"
    return value if isinstance(value, str) else number(value)


def _is_number(value: Cell) -> bool:
    """Whether a cell is set to the right: numbers, also those that were written out, and what is not there."""
    return not isinstance(value, str) or re.fullmatch(r"[+-]?\d[\d.,]*(e[+-]\d+)?", value) is not None


def _percent(value: float) -> str:
    return f"{100.0 * min(1.0, max(0.0, value)):.1f}"


def _anchor(title: str) -> str:
    return "-".join("".join(letter if letter.isalnum() else " " for letter in title.lower()).split())


def _attributes(element: Element) -> Mapping[str, str]:
    return {
        name: f"{value:.2f}".rstrip("0").rstrip(".") if isinstance(value, float) else str(value)
        for name, value in element.attributes.items()
    }


def _tint(estimate: Estimate, block: Matrix) -> str:
    """How strongly a cell is coloured, in per cent."""
    most = max((abs(cell.value - block.centre) for row in block.cells for cell in row if cell is not None), default=0.0)
    return "0" if most == 0.0 else f"{_MOST_TINT * abs(estimate.value - block.centre) / max(most, 0.05):.0f}"


def _settled(estimate: Estimate, centre: float) -> str:
    """Which side of the centre the whole interval lies on: ``above``, ``below`` or ``open``."""
    low, high = (estimate.value if end is None else end for end in (estimate.low, estimate.high))
    return "above" if low > centre else "below" if high < centre else "open"


def _rows_of(block: Curves) -> tuple[Sequence[Sequence[Any]], int]:
    """The figures of a curve: a row for each x, a column for each series, and how many rows there would be."""
    columns = [dict(series.points) for series in block.series]
    places = sorted({x for column in columns for x in column})
    return _evenly([[x, *(column.get(x) for column in columns)] for x in places])


def _evenly(rows: Sequence[Sequence[Any]]) -> tuple[Sequence[Sequence[Any]], int]:
    """Some of the rows with the last one, which is the result, and how many there are."""
    step = -(-len(rows) // _MOST_ROWS) or 1
    return [row for index, row in enumerate(rows) if index % step == 0 or index == len(rows) - 1], len(rows)
