"""A report page as a reader opens it: headless Chromium, no network."""

import json
import shutil
from pathlib import Path

import pytest

from lowdim.report import compress_page

REPORT = Path(__file__).parents[1] / "unit" / "report" / "minilm.json"
FLAGS = [
    "--no-sandbox",
    "--disable-gpu",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--no-first-run",
]
BROWSERS = ("chromium", "chromium-browser", "google-chrome")

pytestmark = pytest.mark.browser


@pytest.fixture(scope="module")
def chromium():
    playwright = pytest.importorskip(
        "playwright.sync_api", reason="playwright is not installed: no page is opened"
    )
    path = next((found for name in BROWSERS if (found := shutil.which(name))), None)
    if path is None:
        pytest.skip(f"no Chromium on this machine (looked for {', '.join(BROWSERS)}): no page is opened")
    with playwright.sync_playwright() as driver:
        browser = driver.chromium.launch(executable_path=path, args=FLAGS)
        yield browser
        browser.close()


@pytest.fixture(scope="module")
def file(tmp_path_factory):
    report = json.loads(REPORT.read_text())
    # One hostile name rides along in everything that follows.
    report["layers"][0]["name"] = "encoder.layer.0.</script><script>document.title='run'</script>"
    return compress_page(report).write(tmp_path_factory.mktemp("page") / "report.html")


@pytest.fixture
def opened(chromium, file):
    """Open the page; at the end, nothing was said on the console and nothing was asked of a network."""
    contexts, said, asked = [], [], []

    def open_page(*, width=1280, height=900, scheme="light"):
        context = chromium.new_context(viewport={"width": width, "height": height}, color_scheme=scheme)
        contexts.append(context)
        page = context.new_page()
        page.on("console", lambda message: said.append(f"{message.type}: {message.text}"))
        page.on("pageerror", lambda error: said.append(str(error)))
        page.on("request", lambda request: asked.append(request.url))
        page.goto(file.as_uri())
        page.wait_for_function("document.documentElement.dataset.drawn", timeout=60_000)
        return page

    yield open_page
    for context in contexts:
        context.close()
    assert said == []
    assert {url.split(":", 1)[0] for url in asked} <= {"file", "data", "blob"}
    assert [url for url in asked if url.startswith("file")] == [file.as_uri()] * len(contexts)


def color(page, selector, name):
    return page.eval_on_selector(selector, f"element => getComputedStyle(element).{name}")


def brightness(text):
    return sum(float(part) for part in text[text.index("(") + 1 : -1].split(",")[:3]) / 3


def test_a_reader_sees_figures_sorts_tables_and_switches_to_dark(opened):
    page = opened()
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


def test_the_page_follows_a_dark_system_and_prints_in_light(opened):
    page = opened(scheme="dark")
    assert brightness(color(page, "body", "backgroundColor")) < 60
    assert page.evaluate("document.documentElement.dataset.drawn") == "dark"
    page.evaluate("dispatchEvent(new Event('beforeprint'))")
    assert page.evaluate("document.documentElement.dataset.drawn") == "light"
    page.evaluate("dispatchEvent(new Event('afterprint'))")
    assert page.evaluate("document.documentElement.dataset.drawn") == "dark"


def test_a_phone_shows_the_page_without_sideways_scrolling(opened):
    page = opened(width=360, height=740)
    assert page.evaluate("document.documentElement.scrollWidth") == 360
    for box in page.locator(".plot-area").evaluate_all(
        "areas => areas.map(a => a.getBoundingClientRect().right)"
    ):
        assert box <= 360
    # Wide tables scroll inside their frame.
    frame = page.locator(".table").nth(2)
    assert frame.evaluate("f => f.scrollWidth > f.clientWidth")
