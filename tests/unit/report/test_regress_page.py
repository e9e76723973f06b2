"""The page of `lowdim regress`: what the report says is shown, parts may be missing, names are escaped."""

import copy
import html as entities
import json
import re

import numpy as np
import pytest

from lowdim.errors import DataError
from lowdim.regress import TensorClassifier, TensorRegressor, regress
from lowdim.report import coefficient_map, regress_page
from lowdim.report import regress_figures as figures

pytestmark = pytest.mark.filterwarnings("ignore")


def written(X, y, **options):
    """A report as report.json tells of it."""
    result = regress(X, y=y, ranks=(1, 2), alphas=(0.01, 0.1), folds=3, **options)
    return json.loads(json.dumps({**result.report, "command": "lowdim regress fit a.npz", "output": "out"}))


@pytest.fixture(scope="module")
def reports():
    rng = np.random.default_rng(0)
    X = rng.normal(size=(60, 6, 5))
    y = X[:, 2:4, 1:3].sum((1, 2))
    cube = rng.normal(size=(60, 4, 3, 3))
    classes = np.digitize(y, [-1, 1])
    return {
        "numbers": written(X, y),
        "classes": written(X, np.array(["low", "middle", "<b>high</b>"])[classes]),
        "volumes": written(cube, cube[:, 1, 1, 1], decomposition="tucker"),
        "vectors": written(X.reshape(60, 30), y),
    }


@pytest.fixture
def report(reports):
    return copy.deepcopy(reports["numbers"])


def text_of(report):
    html = regress_page(report).html()
    html = re.sub(r"<(script|style)[^>]*>.*?</\1>", "", html, flags=re.S)
    plain = entities.unescape(re.sub(r"<[^>]+>", "\n", html))
    return re.sub(r"\s+", " ", plain.replace("\N{NO-BREAK SPACE}", " "))


def test_the_whole_report_shows_every_part(report):
    text = text_of(report)
    for part in ("Coefficients", "Held-out samples", "Rank and penalty", "Use it", "How it was made"):
        assert part in text
    assert report["sentence"] in text
    assert "lowdim regress fit a.npz" in text
    assert "RegressResult.load('out')" in text
    assert "lowdim regress predict out FILE" in text
    assert all(version in text for version in report["versions"].values())


def test_plain_vectors_are_not_compared_with_themselves(report):
    del report["plain_parameters"]
    assert f"one per place: {report['places']:,}" in text_of(report)
    assert "one per place" not in text_of({**report, "form": "vector", "rank": None})


def test_the_main_numbers_are_those_of_the_report(report):
    report["assessment"] |= {"score": 0.9123, "plain_score": 0.4567, "gain": 0.4556, "gain_error": 0.051}
    report |= {"parameters": 1234, "plain_parameters": 5678, "rank": 2, "samples": 4000, "scale": 2.5}
    text = text_of(report)
    for shown in (
        *("Variance explained 91.2 %", "ridge regression: 45.7 %", "1,234", "one per place: 5,678", "4,000"),
        *("CP form", "+45.6 points, standard error 5.1", "2.5"),
    ):
        assert shown in text


@pytest.mark.parametrize("name", ["classes", "volumes", "vectors"])
def test_other_kinds_of_reports(reports, name):
    text = text_of(reports[name])
    shown = {
        "classes": [
            "Correct on held-out samples",
            "logistic regression",
            "True and predicted classes",
        ],
        "volumes": ["Tucker form", "slice with the largest coefficients", "4 \N{MULTIPLICATION SIGN} 3"],
        "vectors": ["plain vector", "Rank and penalty"],
    }
    for part in shown[name]:
        assert part in text


@pytest.mark.parametrize(
    "key",
    [
        *(
            "source",
            "created",
            "sentence",
            "samples",
            "shape",
            "places",
            "features",
            "classes",
            "form",
            "rank",
        ),
        *(
            "alpha",
            "parameters",
            "steps",
            "comparison",
            "maps",
            "settings",
            "scale",
            "seed",
            "notes",
            "seconds",
        ),
        *("versions", "command", "output", "masked", "target", "kind", "affine"),
    ],
)
@pytest.mark.parametrize("name", ["numbers", "classes"])
def test_any_part_may_be_missing(reports, name, key):
    regress_page({k: v for k, v in reports[name].items() if k != key}).html()


@pytest.mark.parametrize("key", ["task", "assessment"])
def test_what_must_be_there(report, key):
    del report[key]
    with pytest.raises(DataError, match=key):
        regress_page(report)


def test_maps_show_the_coefficients_with_zero_in_the_middle(reports):
    figure, _ = figures.maps(reports["numbers"])
    (one,) = figure.data
    assert np.shape(one.z) == (6, 5)
    assert one.zmin == -one.zmax
    assert np.abs(one.z).max() == pytest.approx(one.zmax)
    figure, _ = figures.maps(reports["volumes"])
    assert [np.shape(one.z) for one in figure.data] == [(3, 3), (4, 3), (4, 3)]
    figure, _ = figures.maps(reports["classes"])
    assert len(figure.data) == 3
    assert figure.layout.annotations[0].text == "&lt;b&gt;high&lt;/b&gt;"


def test_large_coefficients_of_tables_are_bars(reports):
    report = copy.deepcopy(reports["vectors"])
    report["features"] = [f"<i>{i}</i>" for i in range(30)]
    figure, _ = figures.maps(report)
    (bars,) = figure.data
    assert bars.type == "bar"
    assert bars.x[0] == "&lt;i&gt;0&lt;/i&gt;"
    report["maps"][0]["values"] = [list(range(1000))]
    assert len(figures.maps(report)[0].data[0].x) == figures.BARS


def test_every_candidate_is_a_point(report):
    points = sum(len(trace.x) for trace in figures.curve(report).data)
    assert points == len(report["comparison"]["rank"]) == 4
    report["comparison"] = {key: value[:1] for key, value in report["comparison"].items()}
    assert figures.curve(report) is None


def test_predictions_are_shown_as_they_are(reports):
    line, dots = figures.agreement(reports["numbers"]).data
    points = reports["numbers"]["assessment"]["points"]
    assert (list(dots.x), list(dots.y)) == (points["true"], points["predicted"])
    assert line.x == line.y
    table = figures.confusion(reports["classes"]).data[0]
    assert np.sum(table.z) == 60
    assert figures.confusion(reports["numbers"]) is None
    assert figures.agreement(reports["classes"]) is None


def test_a_fitted_model_has_a_map_of_its_own():
    rng = np.random.default_rng(0)
    X = rng.normal(size=(60, 6, 5))
    assert np.shape(coefficient_map(TensorRegressor(1).fit(X, X[:, 1, 1])).data[0].z) == (6, 5)
    figure = coefficient_map(TensorClassifier(1).fit(X, np.arange(60) % 3))
    assert [a.text for a in figure.layout.annotations] == ["0", "1", "2"]


def test_names_are_escaped(report):
    report["source"] = "<script>alert(1)</script>"
    assert "<script>alert(1)" not in regress_page(report).html()
