"""The report as a reader's browser shows it."""

import pytest

from tests.experiments.test_report import add_everything_else, make_run
from tf_detectorgan.experiments.report import write_report

OVERFLOWING = """() => [...document.querySelectorAll("main *")]
  .filter(e => !e.closest(".wide, svg") && e.getBoundingClientRect().right > innerWidth + 1)
  .map(e => e.outerHTML.slice(0, 80))"""
BROKEN = "() => [...document.images].filter(i => !i.complete || !i.naturalWidth).map(i => i.alt)"


@pytest.fixture(scope="module")
def report(tmp_path_factory):
    directory = tmp_path_factory.mktemp("run")
    make_run(directory, ["real_only", "cut_paste", "detectorgan"])
    add_everything_else(directory, "detectorgan")
    return write_report(directory)


@pytest.mark.parametrize("width", [1280, 390])
def test_nothing_runs_over_the_edge_and_no_picture_is_broken(browser, report, width):
    page = browser.new_page(viewport={"width": width, "height": 800})
    asked = []
    page.on("request", lambda request: asked.append(request.url))
    page.goto(report.as_uri())
    assert page.evaluate("document.images.length") >= 4  # three figures of curves, one contact sheet
    assert page.evaluate(BROKEN) == []
    assert page.evaluate(OVERFLOWING) == []
    assert page.evaluate("document.documentElement.scrollWidth") == width
    assert [url for url in asked if not url.startswith("data:")] == [report.as_uri()]
    page.close()


def test_a_picture_that_is_too_wide_is_seen(browser):
    """The check itself: a page that breaks both rules."""
    page = browser.new_page(viewport={"width": 390, "height": 800})
    page.set_content('<main><img alt="gone" src="nowhere.png" style="width: 500px"></main>')
    assert page.evaluate(BROKEN) == ["gone"]
    assert len(page.evaluate(OVERFLOWING)) == 1
    page.close()


def test_it_prints_on_paper(browser, report):
    """A4 less its margins is 703 px wide; paper does not scroll, so that no table may be cut off either."""
    page = browser.new_page(viewport={"width": 703, "height": 1032})
    page.goto(report.as_uri())
    page.emulate_media(media="print")
    assert page.evaluate(OVERFLOWING.replace(".wide, ", "")) == []
    assert page.pdf(format="A4").startswith(b"%PDF")
    page.emulate_media(media="screen")
    assert page.evaluate(OVERFLOWING.replace(".wide, ", "")) != []  # the table that a screen scrolls
    page.close()
