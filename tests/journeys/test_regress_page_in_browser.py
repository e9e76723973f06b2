"""The page of `lowdim regress` as a reader opens it: headless Chromium, no network."""

from itertools import pairwise

import numpy as np
import pytest

from lowdim.regress import regress
from lowdim.report import regress_page

pytestmark = [pytest.mark.browser, pytest.mark.filterwarnings("ignore")]


@pytest.fixture(scope="module")
def pages(tmp_path_factory):
    """Numbers from images, classes with a hostile name, and volumes."""
    rng = np.random.default_rng(0)
    X = rng.normal(size=(60, 8, 6))
    y = X[:, 2:5, 1:4].sum((1, 2))
    cube = rng.normal(size=(60, 5, 4, 3))
    hostile = np.array(["low", "</script><script>document.title='run'</script>"])
    folder = tmp_path_factory.mktemp("pages")
    given = {
        "numbers": (X, y),
        "classes": (X, hostile[(y > 0).astype(int)]),
        "volumes": (cube, cube[:, 2, 1, 1]),
    }
    files = {}
    for name, (samples, targets) in given.items():
        result = regress(samples, y=targets, ranks=(1, 2), alphas=(0.01, 0.1), folds=3)
        files[name] = regress_page({**result.report, "source": name}).write(folder / f"{name}.html")
    return files


def test_a_reader_sees_coefficients_predictions_and_the_choice(opened, pages):
    page = opened(pages["numbers"])
    assert page.title() == "numbers"
    captions = page.locator(".plot figcaption").all_inner_texts()
    assert captions == [
        *("Coefficients", "True and predicted values", "Loss on held-out samples by rank and penalty")
    ]
    assert page.locator(".heatmaplayer .hm image").count() == 1
    assert page.locator(".scatterlayer .point").count() > 60
    page.get_by_role("button", name="Switch between light and dark").click()
    assert page.evaluate("document.documentElement.dataset.drawn") == "dark"


def test_hostile_names_are_shown_not_run(opened, pages):
    page = opened(pages["classes"], scheme="dark")
    assert page.title() == "classes"
    # The coefficients and the table of confusions.
    assert page.locator(".heatmaplayer .hm image").count() == 2


def test_slices_of_volumes_are_drawn_side_by_side(opened, pages):
    page = opened(pages["volumes"])
    maps = page.locator(".plot-area").first.locator(".heatmaplayer .hm image")
    boxes = [maps.nth(i).bounding_box() for i in range(maps.count())]
    assert len(boxes) == 3
    for left, right in pairwise(boxes):
        assert left["x"] + left["width"] < right["x"]
        assert left["width"] > 60


@pytest.mark.parametrize("name", ["numbers", "classes", "volumes"])
def test_a_phone_shows_the_page_without_sideways_scrolling(opened, pages, name):
    page = opened(pages[name], width=360)
    assert page.evaluate("document.documentElement.scrollWidth") == 360
    for right in page.locator(".plot-area").evaluate_all(
        "areas => areas.map(a => a.getBoundingClientRect().right)"
    ):
        assert right <= 360
