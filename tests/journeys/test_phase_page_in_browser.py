"""The pages of `lowdim phase` as a reader opens them: headless Chromium, no network."""

import numpy as np
import pytest

from lowdim.phase import Recording, recover, simulate, transition
from lowdim.report import phase_page, transition_page

pytestmark = [pytest.mark.browser, pytest.mark.filterwarnings("ignore")]

Q = 12


@pytest.fixture(scope="module")
def pages(tmp_path_factory):
    """A film with its truth and one without, and a transition; one hostile name rides along."""
    rng = np.random.default_rng(0)
    film = np.einsum("kc,ic,jc->kij", *(rng.random((n, 2)) for n in (Q, 16, 12)))
    known = simulate(film, measurements=1)
    folder = tmp_path_factory.mktemp("pages")
    options = {"ranks": (2, 2, 2), "n_init": 1, "max_iter": 15}
    files = {}
    for name, recording in (("known", known), ("blind", Recording(known.y, A=known.A))):
        report = {**recover(recording, **options).report, "source": name}
        if name == "known":
            report["notes"] = ["</script><script>document.title='run'</script>"]
        files[name] = phase_page(report).write(folder / f"{name}.html")
    tried = transition(film, **options, grid=[0.3, 1.0], seeds=2, name="tried").report
    files["tried"] = transition_page(tried).write(folder / "tried.html")
    return files


def test_a_reader_sees_the_video_and_what_is_known_of_it(opened, pages):
    page = opened(pages["known"])
    assert page.title() == "known"
    captions = page.locator(".plot figcaption").all_inner_texts()
    assert captions[:2] == [
        "True, recovered, and the difference in its own colors",
        "The film: pull the slider",
    ]
    assert page.locator(".plot-area .main-svg").count() >= 5
    images = page.locator(".plot-area").first.locator(".heatmaplayer .hm image")
    assert images.count() == 12
    boxes = [images.nth(i).bounding_box() for i in range(12)]
    # Pixels are square: frames are 16 high and 12 wide.
    assert all(box["height"] / box["width"] == pytest.approx(16 / 12, rel=0.05) for box in boxes)
    page.get_by_role("button", name="Switch between light and dark").click()
    assert page.evaluate("document.documentElement.dataset.drawn") == "dark"


def test_the_slider_moves_both_films(opened, pages):
    page = opened(pages["known"])
    plot = page.locator(".plot-area").nth(1)

    def shown():
        return plot.locator(".heatmaplayer .hm image").evaluate_all("all => all.map(i => i.href.baseVal)")

    before = shown()
    assert len(before) == 2
    assert "Frame 0" in plot.locator(".slider-label").first.text_content()
    plot.scroll_into_view_if_needed()
    rail = plot.locator(".slider-rail-touch-rect").bounding_box()
    page.mouse.click(rail["x"] + rail["width"] - 12, rail["y"] + rail["height"] / 2)
    label = "document.querySelectorAll('.plot-area')[1].querySelector('.slider-label').textContent"
    page.wait_for_function(f"{label} === 'Frame {Q - 1}'")
    page.wait_for_timeout(300)
    after = shown()
    assert len(after) == 2
    assert all(old != new for old, new in zip(before, after, strict=True))


def test_without_a_truth_the_recovered_film_stands_alone(opened, pages):
    page = opened(pages["blind"], scheme="dark")
    assert page.locator(".plot-area").first.locator(".heatmaplayer .hm image").count() == 4
    assert page.locator(".plot-area").nth(1).locator(".heatmaplayer .hm image").count() == 1
    assert "Some of the frames" in page.locator(".plot figcaption").first.inner_text()


def test_a_transition_is_a_line_per_method_and_a_table_that_sorts(opened, pages):
    page = opened(pages["tried"])
    assert page.locator(".scatterlayer .trace .js-line").count() == 3
    page.get_by_role("button", name="Relative error").click()
    keys = page.locator("tbody tr td:nth-child(4)").evaluate_all(
        "cells => cells.map(c => Number(c.dataset.key))"
    )
    assert keys == sorted(keys, reverse=True)


@pytest.mark.parametrize("name", ["known", "blind", "tried"])
def test_a_phone_shows_the_page_without_sideways_scrolling(opened, pages, name):
    page = opened(pages[name], width=360)
    assert page.evaluate("document.documentElement.scrollWidth") == 360
    for right in page.locator(".plot-area").evaluate_all(
        "areas => areas.map(a => a.getBoundingClientRect().right)"
    ):
        assert right <= 360
