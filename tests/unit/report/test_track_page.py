"""The page of `lowdim track`: what the report says is shown, gaps stay gaps, parts may be missing."""

import copy
import html as entities
import json
import re

import numpy as np
import pytest

from lowdim.errors import DataError
from lowdim.report import track_figures as figures
from lowdim.report import track_page
from lowdim.track import track


@pytest.fixture(scope="module")
def whole():
    """A line that turns, with a frame that nobody saw, as report.json tells of it."""
    rng = np.random.default_rng(0)
    t = np.linspace(0, 1, 40)
    Q = np.linalg.qr(rng.normal(size=(6, 2)))[0]
    X = (np.cos(t)[:, None] * Q[:, 0] + np.sin(t)[:, None] * Q[:, 1]) * rng.normal(size=(40, 1))
    X[rng.random(X.shape) < 0.2] = np.nan
    X[5] = np.nan
    report = track(X, n_components=1, model="geodesic", t=1990 + t).report
    return json.loads(json.dumps({**report, "command": "lowdim track a.csv", "output": "out"}))


@pytest.fixture
def report(whole):
    return copy.deepcopy(whole)


@pytest.fixture(scope="module")
def stack():
    rng = np.random.default_rng(0)
    X = rng.normal(size=(12, 1)) * rng.normal(size=(1, 20))
    X[:, :2][rng.random((12, 2)) < 0.5] = np.nan
    return track(X.reshape(12, 4, 5), n_components=1).report


def text_of(report):
    html = track_page(report).html()
    html = re.sub(r"<(script|style)[^>]*>.*?</\1>", "", html, flags=re.S)
    plain = entities.unescape(re.sub(r"<[^>]+>", "\n", html))
    return re.sub(r"\s+", " ", plain.replace("\N{NO-BREAK SPACE}", " "))


def test_the_whole_report_shows_every_part(report):
    text = text_of(report)
    for part in ("Motion", "The panel", "Comparison", "Use it", "How it was made"):
        assert part in text
    assert report["comparison"]["sentence"] in text
    assert "lowdim track a.csv" in text
    assert "TrackResult.load('out')" in text
    assert report["notes"][0] in text
    assert "1990.0 to 1991.0" in text
    assert all(version in text for version in report["versions"].values())


def test_the_main_numbers_are_those_of_the_report(report):
    report |= {"error": 0.1234, "error_at_rest": 0.5678, "turned": 57.31, "missing": 0.255}
    report |= {"filled": 1234, "left_empty": 1, "frames": 4000}
    text = text_of(report)
    for shown in (
        *("12.3 %", "best subspace at rest: 56.8 %", "57.3°", "25.5 %", "1,234 filled in", "4,000"),
        *("1,234 gaps filled in. 1 gap stayed empty.", "40 of 4,000 frames and 6 of 6 features are shown"),
    ):
        assert shown in text


def test_a_subspace_at_rest_has_not_turned(report):
    text = text_of({**report, "model": "static"})
    assert "Turned by" not in text
    assert "Motion" not in text


@pytest.mark.parametrize(
    "key",
    [
        *("source", "created", "n_components", "frames", "features", "shape", "time", "missing", "filled"),
        *("left_empty", "turned", "error", "error_at_rest", "angles", "settings", "seed", "notes", "seconds"),
        *("versions", "panel", "command", "output", "names"),
    ],
)
def test_any_part_may_be_missing(report, key):
    del report[key]
    track_page(report).html()


@pytest.mark.parametrize("key", ["model", "comparison"])
def test_what_must_be_there(report, key):
    del report[key]
    with pytest.raises(DataError, match=key):
        track_page(report)


def test_gaps_are_blank_beside_what_fills_them(report):
    observed, filled = figures.panel(report).data
    panel = report["panel"]
    gaps = np.array([[mark == "0" for mark in row] for row in panel["seen"]]).T
    assert gaps.any()
    assert [[value is None for value in row] for row in observed.z] == gaps.tolist()
    empty = np.array([[value is None for value in row] for row in filled.z])
    assert empty.sum() == 6  # the frame that nobody saw
    assert list(observed.x) == panel["times"]


def test_a_panel_without_gaps_is_shown_once(report):
    report["missing"] = 0.0
    assert len(figures.panel(report).data) == 1
    assert "Nothing was missing." in text_of(report)


def test_angles_are_in_degrees_over_time(report):
    (line,) = figures.angles(report).data
    assert line.y[0] == 0
    assert line.y[-1] == pytest.approx(report["turned"], abs=0.01)
    assert list(line.x) == report["angles"]["times"]


def test_every_error_of_the_comparison_is_a_point(report):
    points = sum(len(trace.x) for trace in figures.errors(report).data)
    assert points == len(report["comparison"]["table"])


def test_images_are_shown_with_gaps_and_filled_in(stack):
    figure, height = figures.pictures(stack)
    assert len(figure.data) == 2 * len(stack["pictures"])
    assert height > 400
    upper, lower = figure.data[0], figure.data[1]
    assert any(value is None for row in upper.z for value in row)
    assert not any(value is None for row in lower.z for value in row)
    text = text_of(stack)
    assert "Images" in text
    assert "images of 4 \N{MULTIPLICATION SIGN} 5" in text


def test_colors_are_not_ruled_by_one_outlier():
    low, high = figures._range([*np.linspace(0, 1, 200), 1e9, None])
    assert 0 <= low < high <= 1
    assert figures._range([3.0, 3.0]) == (2.0, 4.0)
    assert figures._range([None]) == (0.0, 1.0)


def test_names_are_escaped(report):
    report["source"] = "<script>alert(1)</script>"
    report["panel"]["names"][0] = "<b>x</b>"
    html = track_page(report).html()
    assert "<script>alert(1)" not in html
    assert figures.panel(report).data[0].y[0] == "&lt;b&gt;x&lt;/b&gt;"
