"""The page of `lowdim inverse` as a reader opens it: headless Chromium, no network."""

import pytest
import torch

from lowdim.inverse import GMMPrior, reconstruct
from lowdim.report import inverse_page

pytestmark = [pytest.mark.browser, pytest.mark.filterwarnings("ignore")]

SIZE = (6, 9)


@pytest.fixture(scope="module")
def pages(tmp_path_factory):
    """Colors by two solvers with a truth, and a measurement without one; a hostile name rides along."""
    generator = torch.Generator().manual_seed(0)
    prior = GMMPrior.fit(2 * torch.rand(60, 3, *SIZE, generator=generator) - 1, components=2)
    truth = torch.rand(3, 3, *SIZE, generator=generator)
    folder = tmp_path_factory.mktemp("pages")
    options = {"operator": {"name": "sr", "factor": 3}, "sigma": 0.05, "prior": prior}
    solvers = {"dcdp": {"steps": 5}, "dps-steps=5": {"solver": "dps", "steps": 5}}
    known = reconstruct(truth, **options, solvers=solvers)
    hostile = ["</script><script>document.title='run'</script>"]
    report = {**known.report, "source": "known", "notes": hostile}
    files = {"known": inverse_page(report, result=known).write(folder / "known.html")}
    blind = reconstruct(measurement=known.measurements[0][None], **options, solvers={"dcdp": {"steps": 5}})
    report = {**blind.report, "source": "blind"}
    files["blind"] = inverse_page(report, result=blind).write(folder / "blind.html")
    return files


def clip(slider):
    return slider.locator("img.before:not([hidden])").evaluate("image => getComputedStyle(image).clipPath")


def line(slider):
    """Where the line stands, as a share of the picture."""
    return slider.locator(".slider-frame").evaluate(
        "frame => { const f = frame.getBoundingClientRect();"
        "const l = frame.querySelector('.slider-line').getBoundingClientRect();"
        "return (l.left + l.width / 2 - f.left) / f.width; }"
    )


def test_arrow_keys_and_the_mouse_move_the_line(opened, pages):
    page = opened(pages["known"])
    assert page.title() == "known"
    slider = page.locator(".slider").first
    assert line(slider) == pytest.approx(0.5, abs=0.02)
    # From the choice above, one press of Tab reaches the picture.
    page.locator("select").last.focus()
    page.keyboard.press("Tab")
    before = clip(slider)
    for _ in range(10):
        page.keyboard.press("ArrowRight")
    assert line(slider) == pytest.approx(0.6, abs=0.02)
    assert clip(slider) != before
    assert slider.locator("input").get_attribute("aria-valuetext") == "60 % measured, 40 % DCDP"
    page.keyboard.press("End")
    assert line(slider) == pytest.approx(1.0, abs=0.02)
    assert line(page.locator(".slider").nth(1)) == pytest.approx(0.5, abs=0.02)
    slider = page.locator(".slider").nth(1)
    slider.scroll_into_view_if_needed()
    box = slider.locator("input").bounding_box()
    page.mouse.move(box["x"] + box["width"] / 2, box["y"] + box["height"] / 2)
    page.mouse.down()
    page.mouse.move(box["x"] + 0.2 * box["width"], box["y"] + box["height"] / 2, steps=4)
    page.mouse.up()
    assert line(slider) == pytest.approx(0.2, abs=0.03)


def test_a_choice_changes_every_picture_in_its_place(opened, pages):
    page = opened(pages["known"])

    def layers(side):
        return page.locator(f"img.{side}:not([hidden])").evaluate_all("all => all.map(i => i.dataset.layer)")

    assert layers("before") == ["measured"] * 3
    page.locator("select[data-side=before]").select_option("truth")
    page.locator("select[data-side=after]").select_option("DPS, steps 5")
    assert layers("before") == ["truth"] * 3
    assert layers("after") == ["DPS, steps 5"] * 3
    assert page.locator("b.slider-name.before").all_inner_texts() == ["truth"] * 3
    assert page.locator("b.slider-name.after").all_inner_texts() == ["DPS, steps 5"] * 3
    # Left and right lie exactly over each other, and pixels are square.
    for name in ("measured", "truth"):
        page.locator("select[data-side=before]").select_option(name)
        boxes = [page.locator(f"img.{s}:not([hidden])").first.bounding_box() for s in ("before", "after")]
        for key in ("x", "y", "width", "height"):
            assert boxes[0][key] == pytest.approx(boxes[1][key], abs=1.5)
        assert boxes[1]["width"] / boxes[1]["height"] == pytest.approx(SIZE[1] / SIZE[0], rel=0.02)
    assert page.locator("img.small").count() == page.locator(".slider img").count()


def test_errors_residuals_and_solvers_are_drawn(opened, pages):
    page = opened(pages["known"])
    captions = page.locator(".plot figcaption").all_inner_texts()
    assert captions == [
        "Quality and effort: up and to the left is better",
        "Error by pixel",
        "Residual after every step, median over images",
        "Residual of every finished image",
    ]
    assert page.locator(".plot-area").nth(1).locator(".heatmaplayer .hm image").count() == 6
    assert page.locator(".plot-area").nth(0).locator(".scatterlayer .trace").count() == 2
    page.get_by_role("button", name="Network calls").first.click()
    page.get_by_role("button", name="Switch between light and dark").click()
    assert page.evaluate("document.documentElement.dataset.drawn") == "dark"


def test_without_a_truth_the_measurement_stands_on_the_left(opened, pages):
    page = opened(pages["blind"], scheme="dark")
    assert page.locator(".slider").count() == 1
    assert page.locator("select").count() == 0
    assert page.locator("b.slider-name").all_inner_texts() == ["measured", "DCDP"]


@pytest.mark.parametrize("name", ["known", "blind"])
def test_a_phone_shows_the_page_without_sideways_scrolling(opened, pages, name):
    page = opened(pages[name], width=360)
    assert page.evaluate("document.documentElement.scrollWidth") == 360
    rights = page.locator(".plot-area, .slider-frame").evaluate_all(
        "areas => areas.map(a => a.getBoundingClientRect().right)"
    )
    assert all(right <= 360 for right in rights)
