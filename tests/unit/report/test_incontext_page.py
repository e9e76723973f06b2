"""The page of `lowdim incontext`: what it says, draws and bears."""

import copy
import html
import re

import pytest

from lowdim.errors import DataError
from lowdim.incontext import study
from lowdim.report import incontext_figures as figures
from lowdim.report import incontext_page


@pytest.fixture(scope="module")
def made():
    result = study(
        "linear",
        **{"d": 4, "r": 1, "n": 10, "noise": 0.1, "angles_deg": [0, 45, 90], "context_lengths": [5, 10]},
        **{"ranks": [0, 1, 2], "adapt_steps": 20, "steps": 120, "batch": 16, "prompts": 40, "seeds": 2},
    )
    return {**result.report, "command": "lowdim incontext run linear -d 4", "output": "out"}


@pytest.fixture
def report(made):
    return copy.deepcopy(made)


def text_of(*reports, **options):
    page = incontext_page(*reports, **options).html()
    page = re.sub(r"<(script|style)\b.*?</\1>", "", page, flags=re.S)
    return " ".join(html.unescape(re.sub(r"<[^>]+>", " ", page)).replace("\xa0", " ").split())


def test_it_says_what_was_found_and_how(report):
    text = text_of(report)
    for part in (
        report["sentence"],
        "In-context learning: linear attention, trained",
        "1 training subspace",
        "Risk at 0°",
        "Risk at 90°",
        "After an adapter of rank 2",
        "Standard deviation of noise 0.1",
        "lowdim incontext run linear -d 4",
        "StudyResult.load('out')",
    ):
        assert part in text
    theory = [row["relative"] for row in report["risks"] if row["predictor"] == "theory" and row["n"] == 10]
    assert f"{50 * (theory[0] + theory[3]):.1f} %" in text


def test_points_are_measured_and_lines_are_theory(report):
    traces = {trace.name: trace for trace in figures.shift({"": report}).data}
    assert set(traces) == {"measured", "theory", "always 0", "ridge", "oracle (knows the subspace)"}
    assert list(traces["measured"].x) == [0, 45, 90]
    assert traces["measured"].mode == "markers"
    assert traces["theory"].mode == "lines"
    rows = [r for r in report["risks"] if r["predictor"] == "model" and r["n"] == 10 and r["angle_deg"] == 45]
    risks = [row["relative"] for row in rows]
    assert len(risks) == 2
    assert traces["measured"].y[1] == pytest.approx(sum(risks) / 2)
    assert traces["measured"].error_y.array[1] == pytest.approx(abs(risks[0] - risks[1]) / 2**0.5)


def test_of_one_seed_the_error_is_that_of_the_measurement(report):
    report["risks"] = [row for row in report["risks"] if row["seed"] == 0]
    measured = figures.shift({"": report}).data[0]
    row = next(r for r in report["risks"] if r["predictor"] == "model" and r["n"] == 10)
    assert measured.error_y.array[0] == pytest.approx(row["se"] / report["variance"])


def test_contexts_and_ranks_and_losses_are_drawn(report):
    lengths = figures.contexts({"": report})
    assert {tuple(trace.x) for trace in lengths.data} == {(5, 10)}
    assert any(trace.name.startswith("90 degrees") for trace in lengths.data)
    closed, trained = figures.adapters({"": report}).data
    assert list(closed.x) == list(trained.x) == [0, 1, 2]
    assert closed.name == "closed form"
    assert len(figures.loss({"": report}).data) == 2


def test_what_was_not_done_is_not_drawn(report):
    report["risks"] = [row for row in report["risks"] if row["n"] == 10 and row["angle_deg"] == 0]
    report["adapters"], report["losses"] = [], {"0": []}
    for figure in (figures.shift, figures.contexts, figures.adapters, figures.loss):
        assert figure({"": report}) is None
    text = text_of(report)
    assert "Adapters" not in text
    assert "Training" not in text


def test_several_studies_stand_on_one_page(report):
    other = {**copy.deepcopy(report), "sentence": "The other finding."}
    text = text_of(report, other, names=["one line", "again"])
    assert "2 studies" in text
    assert report["sentence"] in text
    assert "The other finding." in text
    assert "How it was made: again" in text
    names = [trace.name for trace in figures.shift({"one": report, "two": other}).data]
    assert "two, measured" in names
    assert "two, ridge" not in names  # the baselines of one study are enough
    assert "study 2" in text_of(report, other)
    for names in (["one"], ["one", "one"]):
        with pytest.raises(DataError, match="1 different names for 2 studies"):
            incontext_page(report, other, names=names)


@pytest.mark.parametrize(
    "key",
    [
        *(
            "created",
            "sizes",
            "parameters",
            "variance",
            "adapters",
            "losses",
            "seconds",
            "versions",
            "sentence",
        ),
        *("command", "output"),
    ],
)
def test_any_part_may_be_missing(report, key):
    del report[key]
    incontext_page(report).html()


@pytest.mark.parametrize("key", ["settings", "risks"])
def test_what_must_be_there(report, key):
    del report[key]
    with pytest.raises(DataError, match=key):
        incontext_page(report)


def test_settings_without_a_model_are_refused(report):
    del report["settings"]["model"]
    with pytest.raises(DataError, match="model"):
        incontext_page(report)


def test_names_are_escaped(report):
    name = "<script>alert(1)</script>"
    page = incontext_page(report, report, names=[name, "b"]).html()
    assert "<script>alert(1)" not in page
    assert figures.shift({name: report, "b": report}).data[0].name.startswith("&lt;script&gt;")
