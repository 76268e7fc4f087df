"""A complete study in headless Chromium: clicks and keys are stored as answers in the database."""

import contextlib
import shutil
import threading

import pytest
import waitress

from tf_detectorgan.user_study import plan as plans
from tf_detectorgan.user_study.answers import Answers
from tf_detectorgan.user_study.page import create_app

DESKTOP, TABLET = {"width": 1280, "height": 900}, {"width": 820, "height": 1180}


@contextlib.contextmanager
def served(study):
    server = waitress.create_server(create_app(study), host="127.0.0.1", port=0)
    thread = threading.Thread(target=server.run, daemon=True)
    thread.start()
    yield f"http://127.0.0.1:{server.effective_port}/"
    server.close()


@pytest.fixture
def address(study):
    with served(study) as address:
        yield address


def join(browser, address, name, viewport):
    page = browser.new_context(viewport=viewport, has_touch=viewport is TABLET).new_page()
    faults = []
    page.on("pageerror", lambda error: faults.append(str(error)))
    page.on("console", lambda message: faults.append(message.text) if message.type == "error" else None)
    page.goto(address)
    page.get_by_label("Your name").fill(name)
    page.get_by_role("button", name="Begin").click()
    page.wait_for_selector("fieldset.current")
    return page, faults


def by_keyboard(page, keys):
    for key in keys:
        page.keyboard.press(key)
    with page.expect_navigation():
        page.keyboard.press("Enter")


def by_mouse(page, choices, marks):
    names = ["better_whole", "better_object", "whole_left", "object_left", "whole_right", "object_right"]
    for name, value in zip(names, [*choices, *map(str, marks)], strict=True):
        page.locator(f"input[name={name}][value='{value}']").check(force=True)
    with page.expect_navigation():
        page.get_by_role("button", name="Next pair").click()


def expected(study, rater, left_better, marks):
    """Returns the expected answers in the database if a rater gives these answers to all pairs."""
    rows = {}
    for shown in plans.order(plans.read(study), rater):
        other = "B" if shown.left == "A" else "A"
        better = shown.left if left_better else other
        scale = dict(
            zip([f"{w}_{s}" for s in (shown.left, other) for w in ("whole", "object")], marks, strict=True)
        )
        rows[shown.pair] = (better, better, *(scale[f"{w}_{s}"] for s in "AB" for w in ("whole", "object")))
    return rows


def test_two_concurrent_raters_by_keyboard_and_by_mouse(browser, address, study):
    desk, faults = join(browser, address, "Ada", DESKTOP)
    tablet, more = join(browser, address, "Bea", TABLET)
    for position in range(4):
        if position == 2:
            desk.keyboard.press("ArrowLeft")  # an incomplete answer, lost by the reload
            desk.reload()
            desk.wait_for_selector("fieldset.current")
            assert desk.get_by_role("heading").inner_text() == "Pair 3 of 4"
        # a wrong answer (2) is corrected
        by_keyboard(desk, ["ArrowLeft", "ArrowLeft", "2", "Backspace", "5", "4", "3", "1"])
        by_mouse(tablet, ["right", "right"], [1, 2, 4, 5])
    for page, name in ((desk, "Ada"), (tablet, "Bea")):
        assert f"Thank you, {name}" in page.content()
    stored = Answers(study).all()
    for rater, left, marks in ((1, True, (5, 4, 3, 1)), (2, False, (1, 2, 4, 5))):
        rows = {
            a.pair: (*a[3:5], a.whole_A, a.object_A, a.whole_B, a.object_B)
            for a in stored
            if a.rater == rater
        }
        assert rows == expected(study, rater, left, marks)
    assert faults + more == []


def test_two_raters_in_sequence_in_one_browser(browser, address, study):
    page, faults = join(browser, address, "Ada", TABLET)
    for _ in range(4):
        by_keyboard(page, ["ArrowLeft", "ArrowLeft", "5", "4", "3", "1"])
    page.get_by_role("button", name="Another rater").click()
    page.get_by_label("Your name").fill("Bea")
    page.get_by_role("button", name="Begin").click()
    page.wait_for_selector("fieldset.current")
    by_keyboard(page, ["ArrowRight", "ArrowRight", "5", "4", "3", "1"])
    page.goto(address)  # Bea returns
    assert page.get_by_role("heading").inner_text() == "Pair 2 of 4"
    assert [len(Answers(study).all(rater)) for rater in (1, 2)] == [4, 1]
    assert faults == []


def test_two_studies_of_one_host_in_one_browser(browser, address, study, tmp_path):
    other = shutil.copytree(study, tmp_path / "other", ignore=shutil.ignore_patterns("*.key", "*.sqlite*"))
    with served(other) as second:
        page, faults = join(browser, address, "Ada", DESKTOP)
        page.goto(second)
        page.get_by_label("Your name").fill("Bea")
        page.get_by_role("button", name="Begin").click()
        page.wait_for_selector("fieldset.current")
        for home, name in ((address, "Ada"), (second, "Bea"), (address, "Ada")):
            page.goto(home)
            assert name in page.locator("header").inner_text()
        assert faults == []


@pytest.mark.parametrize("viewport", [DESKTOP, TABLET], ids=["desktop", "tablet"])
def test_zoom_and_contrast_apply_to_both_images(browser, address, viewport):
    page, faults = join(browser, address, "Ada", viewport)
    wide = page.evaluate("document.documentElement.scrollWidth <= innerWidth")
    styles = "[...document.querySelectorAll('.view img')].map(i => [i.style.transform, i.style.filter])"
    assert wide
    before = page.evaluate(styles)
    place = page.locator(".view").first.bounding_box()
    page.mouse.move(place["x"] + 20, place["y"] + 20)
    page.mouse.wheel(0, -400)
    page.wait_for_function("document.querySelector('.view img').style.transform.includes('scale(2.7')")
    page.mouse.down(button="right")
    page.mouse.move(place["x"] + 60, place["y"] + 20)
    page.mouse.up(button="right")
    first, second = page.evaluate(styles)
    assert first == second
    assert "contrast(1.2" in first[1]
    page.keyboard.press("o")
    box = page.locator(".box").first.bounding_box()
    middle = box["x"] + box["width"] / 2 - place["x"]
    assert middle == pytest.approx(place["width"] / 2, abs=place["width"] / 5)
    page.keyboard.press("0")
    assert page.evaluate(styles) == before
    assert faults == []
