"""The page of `lowdim dynamics` as a reader opens it: headless Chromium, no network."""

from itertools import pairwise

import numpy as np
import pandas as pd
import pytest

from lowdim.dynamics.record import record
from lowdim.dynamics.runfile import DynamicsRun
from lowdim.report import dynamics_page

pytestmark = pytest.mark.browser

HOSTILE = "</script><script>document.title='run'</script>"


@pytest.fixture(scope="module")
def pages(tmp_path_factory):
    """A small network and one of 200 layers, both at the edge; one hostile name rides along."""
    folder = tmp_path_factory.mktemp("pages")
    t = np.arange(1, 41)
    files = {}
    for name, layers in (("small", 3), ("large", 200)):
        columns = {
            "time": 0.1 * t,
            "dyn/loss": np.exp(-t / 10.0),
            "dyn/sharpness_ratio": np.minimum(0.05 * t, 1.01),
            "dyn/alternation": np.where(t < 24, -0.99, 0.98),
            "dyn/period": np.where(t < 24, 0, 2),
            "dyn/osc_rank": np.where(t < 24, 0, 1),
            "dyn/hvps": 4.0,
            "dyn/seconds": 0.01,
            "dyn/balance_gap/net": 2.0 / t,
        }
        for i in range(layers):
            layer = HOSTILE if (name, i) == ("small", 0) else f"encoder.layer.{i}.weight"
            columns[f"dyn/erank/{layer}"] = 300.0 - (i % 7) * t
            columns[f"dyn/drift_deg/{layer}"] = (i % 9) * t / 4.0
        table = pd.DataFrame(columns, index=pd.Index(25 * t, name="step"))
        report = record(DynamicsRun(f"{name}.jsonl", ({"optimizer": "SGD", "lr": 0.2},), table))
        files[name] = dynamics_page(report).write(folder / f"{name}.html")
    return files


def test_a_reader_sees_the_training_and_its_layers(opened, pages):
    page = opened(pages["small"])
    assert page.title() == "small.jsonl"
    captions = page.locator(".plot figcaption").all_inner_texts()
    assert captions[0].startswith("Loss, sharpness ratio, alternation score, period, oscillation rank over")
    assert captions[1:3] == ["Effective rank of weights", "Drift"]
    first = page.locator(".plot-area").first
    assert first.locator(".scatterlayer .trace").count() == 4
    assert first.locator(".heatmaplayer .hm image").count() == 1
    notes = first.locator(".annotation-text").all_text_contents()
    assert set(notes) == {"passes 1 at step 525", "flips by step 600"}
    page.get_by_role("button", name="Switch between light and dark").click()
    assert page.evaluate("document.documentElement.dataset.drawn") == "dark"


def test_two_hundred_layers_stay_readable(opened, pages):
    page = opened(pages["large"], scheme="dark")
    drawn = page.locator(".plot-area").nth(1)
    assert drawn.locator(".heatmaplayer .hm image").count() == 1
    boxes = [label.bounding_box() for label in drawn.locator(".ytick text").all()]
    assert 20 <= len(boxes) <= 45
    boxes.sort(key=lambda box: box["y"])
    # No name covers the next one.
    assert all(upper["y"] + upper["height"] <= lower["y"] + 3 for upper, lower in pairwise(boxes))
    rows = page.locator("table").first.locator("tbody tr")
    assert rows.count() == 200
    page.get_by_role("button", name="Drift, degrees").click()
    assert rows.first.locator("td").last.inner_text() == "80"


@pytest.mark.parametrize("name", ["small", "large"])
def test_a_phone_shows_the_page_without_sideways_scrolling(opened, pages, name):
    page = opened(pages[name], width=360)
    assert page.evaluate("document.documentElement.scrollWidth") == 360
    for right in page.locator(".plot-area").evaluate_all(
        "areas => areas.map(a => a.getBoundingClientRect().right)"
    ):
        assert right <= 360
