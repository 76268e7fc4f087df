"""Tests of the report page in a browser."""

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
def test_page_fits_the_window_and_all_images_load(browser, report, width):
    page = browser.new_page(viewport={"width": width, "height": 800})
    requested = []
    page.on("request", lambda request: requested.append(request.url))
    page.goto(report.as_uri())
    assert page.evaluate("document.images.length") >= 4  # three figures of curves, one contact sheet
    assert page.evaluate(BROKEN) == []
    assert page.evaluate(OVERFLOWING) == []
    assert page.evaluate("document.documentElement.scrollWidth") == width
    assert [url for url in requested if not url.startswith("data:")] == [report.as_uri()]
    page.close()


def test_checks_detect_a_wide_and_a_missing_image(browser):
    """Tests BROKEN and OVERFLOWING on a page that violates both."""
    page = browser.new_page(viewport={"width": 390, "height": 800})
    page.set_content('<main><img alt="gone" src="nowhere.png" style="width: 500px"></main>')
    assert page.evaluate(BROKEN) == ["gone"]
    assert len(page.evaluate(OVERFLOWING)) == 1
    page.close()


def test_page_fits_on_a4_paper_when_printed(browser, report):
    """A4 without margins is 703 px wide. Paper does not scroll, so tables must not be cut off, either."""
    page = browser.new_page(viewport={"width": 703, "height": 1032})
    page.goto(report.as_uri())
    page.emulate_media(media="print")
    assert page.evaluate(OVERFLOWING.replace(".wide, ", "")) == []
    assert page.pdf(format="A4").startswith(b"%PDF")
    page.emulate_media(media="screen")
    assert page.evaluate(OVERFLOWING.replace(".wide, ", "")) != []  # the table that a screen scrolls
    page.close()
