"""The page of `lowdim track` as a reader opens it: headless Chromium, no network."""

import numpy as np
import pytest

from lowdim.report import track_page
from lowdim.track import track

pytestmark = [pytest.mark.browser, pytest.mark.filterwarnings("ignore")]


@pytest.fixture(scope="module")
def pages(tmp_path_factory):
    """A panel and a stack of images, both turning, with gaps; one hostile name rides along."""
    rng = np.random.default_rng(0)
    t = np.linspace(0, 1, 40)[:, None]
    Q = np.linalg.qr(rng.normal(size=(12, 2)))[0]
    X = (np.cos(t) * Q[:, 0] + np.sin(t) * Q[:, 1]) * rng.normal(size=(40, 1))
    X[rng.random(X.shape) < 0.2] = np.nan
    folder = tmp_path_factory.mktemp("pages")
    files = {}
    for name, frames in (("panel", X), ("stack", X.reshape(40, 3, 4))):
        report = {**track(frames, n_components=1, model="geodesic").report, "source": name}
        if name == "panel":
            report["panel"]["names"][0] = "</script><script>document.title='run'</script>"
        files[name] = track_page(report).write(folder / f"{name}.html")
    return files


def test_a_reader_sees_angles_panel_and_comparison(opened, pages):
    page = opened(pages["panel"])
    assert page.title() == "panel"
    captions = page.locator(".plot figcaption").all_inner_texts()
    assert captions[0] == "How far the subspace has turned"
    assert "Observed" in captions[1]
    assert page.locator(".plot-area .main-svg").count() >= 3
    # Both halves of the panel are drawn, side by side.
    maps = page.locator(".heatmaplayer .hm image")
    assert maps.count() == 2
    left, right = (maps.nth(i).bounding_box() for i in range(2))
    assert left["x"] + left["width"] < right["x"]
    assert left["width"] > 100
    page.get_by_role("button", name="Switch between light and dark").click()
    assert page.evaluate("document.documentElement.dataset.drawn") == "dark"


def test_images_are_drawn_with_gaps_and_filled_in(opened, pages):
    page = opened(pages["stack"], scheme="dark")
    assert page.evaluate("document.documentElement.dataset.drawn") == "dark"
    assert page.locator(".heatmaplayer .hm image").count() == 8


@pytest.mark.parametrize("name", ["panel", "stack"])
def test_a_phone_shows_the_page_without_sideways_scrolling(opened, pages, name):
    page = opened(pages[name], width=360)
    assert page.evaluate("document.documentElement.scrollWidth") == 360
    for right in page.locator(".plot-area").evaluate_all(
        "areas => areas.map(a => a.getBoundingClientRect().right)"
    ):
        assert right <= 360
