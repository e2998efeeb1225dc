"""A page is whole, self-contained and safe, whatever its blocks hold."""

import re
from collections.abc import Sequence

import pytest

from alignment.report import render
from alignment.report.blocks import (
    Bars,
    Block,
    Code,
    Curves,
    Estimate,
    Fact,
    Facts,
    Fold,
    Forest,
    Mark,
    Matrix,
    Note,
    Page,
    Sample,
    Samples,
    Scatter,
    Section,
    Series,
    Table,
)
from tests.report.reading import Reading

EVIL = "</code></svg><script>alert(1)</script><img src=x onerror=alert(2)>\"' onload='alert(3)"


def every_block(text: str) -> list[Block]:
    """One of each kind, with the same text wherever a block takes one."""
    series = [
        Series(name=f"{text}{n}", points=[(0, 0.1), (1, 0.2)], band=[(0, 0.0, 0.3), (1, 0.1, 0.4)]) for n in (1, 2)
    ]
    marks = (Mark(value=0.15, label=text),)
    estimate = Estimate(value=0.6, low=0.55, high=0.7)
    blocks: list[Block] = [
        Curves(title=text, x=text, series=series, caption=text, across=marks, upright=marks),
        Scatter(title=text, x=text, y=text, series=series, caption=text, across=marks, upright=marks),
        Bars(title=text, groups=[(text, [estimate, None])], names=[text, "b"], caption=text, upright=marks),
        Forest(title=text, rows=[(text, estimate, [0.58, 0.63]), (text, None, [])], caption=text, upright=marks),
        Matrix(title=text, corner=text, rows=[text], columns=[text, "x"], cells=[[estimate, None]], caption=text),
        Table(title=text, columns=[text, "n"], rows=[[text, 1.5], [None, "+0.1"]], caption=text),
        Samples(
            title=text,
            left=text,
            right=text,
            caption=text,
            samples=[Sample(prompt=text, left=text, right=text, win=0.7, members=[(text, 0.2)])],
        ),
        Code(title=text, text=text),
        Code(title=text, text=text, folded=True),
        Facts(facts=[Fact(label=text, value=text, note=text)]),
        Note(text=text, kind="warning"),
    ]
    return [*blocks, Fold(title=text, blocks=blocks)]


def page_of(blocks: Sequence[Block], text: str = "page") -> str:
    sections = [Section(title=text, blocks=blocks), Section(title="Other", blocks=())]
    return render(Page(title=text, kind=text, lead=text, sections=sections))


def test_what_a_model_wrote_is_text_and_nothing_else() -> None:
    """The elements of a page are the same whatever stands in its blocks, and the text is read as it was written."""
    plain, evil = Reading(page_of(every_block("plain"), "plain")), Reading(page_of(every_block(EVIL), EVIL))
    assert [tag for tag, _ in evil.elements] == [tag for tag, _ in plain.elements]
    assert [set(attributes) for _, attributes in evil.elements] == [set(attributes) for _, attributes in plain.elements]
    assert not evil.all("script", "img")
    # The label of a bar, and of a row of a forest, is cut short; its title is whole.
    assert evil.text.count(EVIL) == plain.text.count("plain") - 4


def test_nothing_is_loaded_and_nothing_runs() -> None:
    page = page_of(every_block("plain"))
    reading = Reading(page)
    assert not reading.all("script", "iframe", "img", "object", "embed", "form", "base")
    links = [
        value for _, attributes in reading.elements for name, value in attributes.items() if name in ("href", "src")
    ]
    assert all(value.startswith(("#", "data:,")) for value in links)
    assert not [name for _, attributes in reading.elements for name in attributes if name.startswith("on")]
    assert "url(" not in page and "@import" not in page
    (policy,) = [item["content"] for item in reading.all("meta") if "http-equiv" in item]
    assert policy.startswith("default-src 'none'")


def test_every_figure_has_a_text_alternative() -> None:
    reading = Reading(page_of(every_block("plain")))
    figures = reading.all("svg")
    assert any("aria-label" in figure for figure in figures)
    for figure in figures:
        assert figure.get("aria-hidden") == "true" or (figure["role"] == "img" and len(figure["aria-label"]) > 20)


def test_links_lead_to_sections() -> None:
    reading = Reading(page_of([], "A <b>title</b>, with  signs"))
    ids = {attributes["id"] for _, attributes in reading.elements if "id" in attributes}
    assert {link["href"] for link in reading.all("a")} <= {f"#{name}" for name in ids}


def test_cells_are_tinted_by_their_distance_from_even() -> None:
    """The farthest cell has the strongest tint, 48 %; half as far is half as strong; a sign says what is settled."""
    row = [
        Estimate(value=0.7),
        Estimate(value=0.4, low=0.3, high=0.6),
        Estimate(value=0.4, low=0.3, high=0.45),
        Estimate(value=0.5),
    ]
    page = page_of([Matrix(title="t", corner="c", rows=["r"], columns=["a", "b", "c", "d"], cells=[row])])
    cells = re.findall(r'class="number (\w+)" style="--tint:(\d+)%">(?:<span[^>]*>(.)</span>)?', page)
    assert cells == [("ahead", "48", "▲"), ("behind", "24", ""), ("behind", "24", "▼"), ("behind", "0", "")]


def test_a_long_curve_has_few_rows_of_figures_with_the_last() -> None:
    points = [(float(n), n / 1000) for n in range(1001)]
    page = page_of([Curves(title="t", x="x", series=[Series(name="s", points=points)])])
    assert "of 1,001 rows" in page
    assert page.count('<th scope="row">') <= 42
    assert '<th scope="row">1,000</th><td class="number">1</td>' in page


@pytest.mark.parametrize(("win", "width", "said"), [(0.25, "25.0", "b preferred"), (0.498, "49.8", "even")])
def test_a_verdict_is_said_in_words(win: float, width: str, said: str) -> None:
    sample = Sample(prompt="p", left="", right="r", win=win)
    page = page_of([Samples(title="", left="a", right="b", samples=[sample])])
    assert f'style="width:{width}%"' in page
    text = Reading(page).text
    assert said in text and "(empty)" in text
