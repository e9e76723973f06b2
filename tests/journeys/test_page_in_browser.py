"""A report page as a reader opens it: headless Chromium, no network."""

import json
from functools import partial
from pathlib import Path

import pytest

from lowdim.report import compress_page

REPORT = Path(__file__).parents[1] / "unit" / "report" / "minilm.json"

pytestmark = pytest.mark.browser


@pytest.fixture(scope="module")
def file(tmp_path_factory):
    report = json.loads(REPORT.read_text())
    # One hostile name rides along in everything that follows.
    report["layers"][0]["name"] = "encoder.layer.0.</script><script>document.title='run'</script>"
    return compress_page(report).write(tmp_path_factory.mktemp("page") / "report.html")


@pytest.fixture
def opened_page(opened, file):
    """Open the page of the report."""
    return partial(opened, file)


def color(page, selector, name):
    return page.eval_on_selector(selector, f"element => getComputedStyle(element).{name}")


def brightness(text):
    return sum(float(part) for part in text[text.index("(") + 1 : -1].split(",")[:3]) / 3


def test_a_reader_sees_figures_sorts_tables_and_switches_to_dark(opened_page):
    page = opened_page()
    assert page.title() == "all-MiniLM-L6-v2"
    areas = page.locator(".plot-area")
    assert areas.count() == 6
    assert page.locator(".plot-area .main-svg").count() >= 6
    # Every layer is a drawn point in both panels of the error figure.
    errors = page.locator("figure", has_text="Relative error of every compressed layer")
    assert errors.locator(".scatterlayer .point").count() == 2 * 36

    table = page.locator("table", has=page.get_by_text("All 36 compressed layers"))
    head = table.get_by_role("button", name="Output error")

    def values():
        keys = table.locator("tbody tr td:nth-child(8)").evaluate_all(
            "cells => cells.map(c => c.dataset.key)"
        )
        return [float(key) for key in keys]

    assert values() != sorted(values())
    head.click()
    assert values() == sorted(values(), reverse=True)
    head.focus()
    page.keyboard.press("Enter")
    assert values() == sorted(values())
    assert table.locator("th[aria-sort]").count() == 1

    before = color(page, "body", "backgroundColor"), color(page, ".xtick text", "fill")
    page.get_by_role("button", name="Switch between light and dark").click()
    assert page.evaluate("document.documentElement.dataset.drawn") == "dark"
    after = color(page, "body", "backgroundColor"), color(page, ".xtick text", "fill")
    assert brightness(before[0]) > 200 > 60 > brightness(after[0])
    assert brightness(after[1]) > brightness(before[1])


def test_the_page_follows_a_dark_system_and_prints_in_light(opened_page):
    page = opened_page(scheme="dark")
    assert brightness(color(page, "body", "backgroundColor")) < 60
    assert page.evaluate("document.documentElement.dataset.drawn") == "dark"
    page.evaluate("dispatchEvent(new Event('beforeprint'))")
    assert page.evaluate("document.documentElement.dataset.drawn") == "light"
    page.evaluate("dispatchEvent(new Event('afterprint'))")
    assert page.evaluate("document.documentElement.dataset.drawn") == "dark"


def test_a_phone_shows_the_page_without_sideways_scrolling(opened_page):
    page = opened_page(width=360, height=740)
    assert page.evaluate("document.documentElement.scrollWidth") == 360
    for box in page.locator(".plot-area").evaluate_all(
        "areas => areas.map(a => a.getBoundingClientRect().right)"
    ):
        assert box <= 360
    # Wide tables scroll inside their frame.
    frame = page.locator(".table").nth(2)
    assert frame.evaluate("f => f.scrollWidth > f.clientWidth")
