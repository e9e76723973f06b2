"""The page of `lowdim incontext` as a reader opens it: headless Chromium, no network."""

import pytest

from lowdim.incontext import study
from lowdim.report import incontext_page

pytestmark = [pytest.mark.browser, pytest.mark.filterwarnings("ignore")]


@pytest.fixture(scope="module")
def pages(tmp_path_factory):
    """One study, and two on one page, of which one has a hostile name."""
    report = study(
        "linear",
        **{"d": 4, "r": 1, "n": 10, "angles_deg": [0, 45, 90], "context_lengths": [5, 10], "ranks": [0, 1]},
        **{"adapt_steps": 5, "steps": 60, "batch": 8, "prompts": 30},
    ).report
    folder = tmp_path_factory.mktemp("pages")
    hostile = "</script><script>document.title='run'</script>"
    return {
        "one": incontext_page(report).write(folder / "one.html"),
        "two": incontext_page(report, report, names=[hostile, "plain"]).write(folder / "two.html"),
    }


def test_a_reader_sees_shift_contexts_adapters_and_training(opened, pages):
    page = opened(pages["one"])
    captions = page.locator(".plot figcaption").all_inner_texts()
    assert captions == [
        "Risk over the angle between training and test",
        "Risk over the number of examples in the prompt",
        "Risk after adaptation over the rank of the adapter",
        "Loss over the steps of training",
    ]
    assert page.locator(".plot-area .main-svg").count() >= 4
    # Three points of the measurement, and a line of theory.
    assert page.locator(".plot").first.locator(".scatterlayer .trace .points path").count() == 3
    assert page.locator(".plot").first.locator(".scatterlayer .trace path.js-line").count() >= 2
    page.get_by_role("button", name="Switch between light and dark").click()
    assert page.evaluate("document.documentElement.dataset.drawn") == "dark"


def test_names_of_studies_are_shown_and_not_run(opened, pages):
    page = opened(pages["two"])
    assert page.title() == "In-context learning under a shift"
    assert page.get_by_text("How it was made: </script>").count() >= 1


@pytest.mark.parametrize("name", ["one", "two"])
def test_a_phone_shows_the_page_without_sideways_scrolling(opened, pages, name):
    page = opened(pages[name], width=360)
    assert page.evaluate("document.documentElement.scrollWidth") == 360
    for right in page.locator(".plot-area").evaluate_all(
        "areas => areas.map(a => a.getBoundingClientRect().right)"
    ):
        assert right <= 360
