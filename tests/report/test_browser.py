"""The pages in a real browser, at the width of a telephone and of a screen, light, dark and printed."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from alignment.report import report, write_page
from alignment.report.ablation import ablation_page
from alignment.report.blocks import Page, Section
from tests.report.browser import Tab, browser_tab, find_browser
from tests.report.folders import ablated, write_run
from tests.report.test_page import every_block

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(find_browser() is None, reason="no Chromium on the path (apt-get install chromium)"),
]
# Contrast of text on what stands behind it, WCAG 2.2, 1.4.3; behind a text is the nearest ancestor with a colour.
_FAINT = """
(() => {
  const canvas = document.createElement('canvas').getContext('2d', {willReadFrequently: true});
  const rgb = (colour, under) => {
    canvas.fillStyle = `rgb(${under.join(' ')})`; canvas.fillRect(0, 0, 1, 1);
    canvas.fillStyle = colour; canvas.fillRect(0, 0, 1, 1);
    return [...canvas.getImageData(0, 0, 1, 1).data].slice(0, 3);
  };
  const light = colour => colour.map(c => c / 255)
    .map(c => c <= 0.04045 ? c / 12.92 : ((c + 0.055) / 1.055) ** 2.4)
    .reduce((sum, c, i) => sum + c * [0.2126, 0.7152, 0.0722][i], 0);
  const behind = element => element === null ? [255, 255, 255]
    : rgb(getComputedStyle(element).backgroundColor, behind(element.parentElement));
  const faint = [];
  for (const element of document.querySelectorAll('body *')) {
    const own = [...element.childNodes].some(node => node.nodeType === 3 && node.data.trim());
    if (!own || !element.getClientRects().length || element.closest('title')) continue;
    const style = getComputedStyle(element), back = behind(element);
    const colour = rgb(element.namespaceURI.endsWith('svg') ? style.fill : style.color, back);
    const [low, high] = [light(colour), light(back)].sort((a, b) => a - b);
    const ratio = (high + 0.05) / (low + 0.05);
    if (ratio < 4.5) faint.push(`${element.tagName}.${element.getAttribute('class')}: ${ratio.toFixed(2)}`);
  }
  return [...new Set(faint)];
})()
"""
_WIDTHS = "[document.documentElement.scrollWidth, document.documentElement.clientWidth]"
_WITHOUT_ALTERNATIVE = """
[...document.querySelectorAll('svg, figure, img')].filter(item =>
  item.tagName === 'FIGURE' ? !item.querySelector('figcaption')?.textContent.trim()
  : item.getAttribute('aria-hidden') !== 'true'
    && !(item.getAttribute('role') === 'img' && item.getAttribute('aria-label'))
).length
"""


@pytest.fixture(scope="module")
def tab(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Tab]:
    with browser_tab(tmp_path_factory.mktemp("profile")) as tab:
        yield tab


@pytest.fixture(scope="module")
def pages(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A run, several runs, one without anything, an ablation, and every block with a word that nothing can break."""
    folder = tmp_path_factory.mktemp("runs")
    runs = [write_run(folder / f"a-run-with-a-rather-long-name-{number}") for number in range(5)]
    empty = write_run(folder / "empty", log=[], summary={"before": {}, "after": {}}, samples=[])
    blocks = [*every_block("word"), *every_block("long" * 60)]
    every = Page(title="Every block", kind="test", lead="", sections=[Section(title="Blocks", blocks=blocks)])
    return {
        "run": report(runs[:1]).path,
        "runs": report(runs).path,
        "empty": report([empty]).path,
        "blocks": write_page(every, folder / "blocks.html"),
        "ablation": write_page(ablation_page("methods", ablated(), recipe="seeds: [0, 1]"), folder / "ablation.html"),
    }


@pytest.mark.parametrize("name", ["run", "runs", "empty", "blocks", "ablation"])
@pytest.mark.parametrize("width", [360, 1440])
def test_nothing_overflows_and_nobody_complains(tab: Tab, pages: dict[str, Path], name: str, width: int) -> None:
    tab.open(pages[name], width=width)
    # What is folded may be unfolded.
    for _ in range(2):
        scroll, client = tab.evaluate(_WIDTHS)
        assert scroll <= client == width
        tab.evaluate("document.querySelectorAll('details').forEach(item => item.open = true)")
    assert tab.complaints == []


@pytest.mark.parametrize("name", ["run", "runs", "blocks", "ablation"])
def test_every_figure_has_a_text_alternative(tab: Tab, pages: dict[str, Path], name: str) -> None:
    tab.open(pages[name], width=1440)
    assert tab.evaluate("document.querySelectorAll('svg[role=img]').length") > 0
    assert tab.evaluate(_WITHOUT_ALTERNATIVE) == 0


@pytest.mark.parametrize("theme", ["light", "dark"])
def test_text_stands_out_from_what_is_behind_it(tab: Tab, pages: dict[str, Path], theme: str) -> None:
    for name in ("run", "runs", "blocks", "ablation"):
        tab.open(pages[name], width=1440, theme=theme)
        assert tab.evaluate(_FAINT) == []


def test_figures_follow_the_theme(tab: Tab, pages: dict[str, Path]) -> None:
    colours = []
    for theme in ("light", "dark"):
        tab.open(pages["run"], width=1440, theme=theme)
        of = "getComputedStyle(document.querySelector('path.series')).stroke"
        colours.append((tab.evaluate(of), tab.evaluate("getComputedStyle(document.body).backgroundColor")))
    assert colours[0][0] != colours[1][0] and colours[0][1] != colours[1][1]


def test_paper_is_light_and_hides_nothing(tab: Tab, pages: dict[str, Path]) -> None:
    """A page is about 700 px wide on A4."""
    tab.open(pages["run"], width=700, theme="dark", media="print")
    scroll, client = tab.evaluate(_WIDTHS)
    assert scroll <= client
    assert tab.evaluate("getComputedStyle(document.querySelector('h1')).color") == "rgb(27, 29, 34)"
    assert tab.evaluate("getComputedStyle(document.querySelector('.answer .text')).overflow") == "visible"


def test_the_browser_would_see_a_script_and_an_overflow(tab: Tab, tmp_path: Path) -> None:
    """The checks above can fail."""
    page = tmp_path / "bad.html"
    page.write_text(
        "<!doctype html><meta name=viewport content='width=device-width'><p style='width: 2000px; color: #ccc'>x</p>"
        "<svg></svg><script src='none.js'></script><script>console.error('seen')</script>"
    )
    tab.open(page, width=360)
    scroll, client = tab.evaluate(_WIDTHS)
    assert scroll > client
    assert any("seen" in text for text in tab.complaints) and any("none.js" in text for text in tab.complaints)
    assert tab.evaluate(_WITHOUT_ALTERNATIVE) == 1
    assert tab.evaluate(_FAINT) == ["P.null: 1.61"]
