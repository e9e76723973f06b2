"""The page and the terminal view of a watched training: they show what the report says."""

import copy
import html as entities
import json
import re

import numpy as np
import pandas as pd
import pytest
from rich.console import Console

from lowdim.dynamics.record import SERIES, record
from lowdim.dynamics.runfile import DynamicsRun
from lowdim.errors import DataError
from lowdim.report import dynamics_figures as figures
from lowdim.report import dynamics_page
from lowdim.report.dynamics_terminal import BLOCKS, chart, gauge, terminal_view
from lowdim.report.dynamics_words import METRICS

HEADER = {
    **{"optimizer": "SGD", "lr": 0.2, "label": "sharpness", "threshold_rule": "2 / lr", "every": 25},
    **{"parameters": 8970, "probes": ["sharpness", "rank"], "started": "2026-11-28T08:40:00+00:00"},
}


def run_of(layers=3, reports=40):
    """A training that rises to the edge at step 500 and oscillates there from step 600 on."""
    t = np.arange(1, reports + 1)
    ratio = np.minimum(0.05 * t, 1.0) + 0.01 * (-1.0) ** t
    columns = {
        "time": 0.1 * t,
        "dyn/loss": np.exp(-t / 10.0),
        "dyn/lr": 0.2,
        "dyn/sharpness": 10 * ratio,
        "dyn/sharpness_ratio": ratio,
        "dyn/threshold": 10.0,
        "dyn/lowest_curvature": -0.1,
        "dyn/alternation": np.where(t < 24, -0.99, 0.98),
        "dyn/edge": (t >= 24).astype(float),
        "dyn/period": np.where(t < 24, 0, 2),
        "dyn/osc_rank": np.where(t < 24, 0, 1),
        "dyn/hvps": 4.0,
        "dyn/seconds": 0.01,
    }
    for i in range(layers):
        columns[f"dyn/erank/net.{i}.weight"] = 30.0 - i * t / reports
        columns[f"dyn/srank/net.{i}.weight"] = 5.0
        columns[f"dyn/drift_deg/net.{i}.weight"] = (i + 1) * 20.0 * t / reports % 90
    columns["dyn/balance_gap/net"] = 2.0 / t
    table = pd.DataFrame(columns, index=pd.Index(25 * t, name="step"))
    return DynamicsRun("run.jsonl", (HEADER, HEADER), table, torn=1)


@pytest.fixture(scope="module")
def whole():
    report = {**record(run_of()), "command": "lowdim dynamics watch run.jsonl", "output": "out"}
    return json.loads(json.dumps(report))


@pytest.fixture
def report(whole):
    return copy.deepcopy(whole)


def text_of(report):
    html = dynamics_page(report).html()
    html = re.sub(r"<(script|style)[^>]*>.*?</\1>", "", html, flags=re.S)
    plain = entities.unescape(re.sub(r"<[^>]+>", "\n", html))
    return re.sub(r"\s+", " ", plain.replace("\N{NO-BREAK SPACE}", " "))


def shown(report, width=80, **options):
    console = Console(width=width, force_terminal=False)
    with console.capture() as captured:
        console.print(terminal_view(report, width=width, **options))
    return captured.get()


def test_the_whole_report_shows_every_part(report):
    text = text_of(report)
    for part in (
        "Findings",
        "Training",
        "Layers",
        "Balance",
        "Cost",
        "Numbers",
        "Words",
        "Use it",
        "How it was made",
    ):
        assert part in text
    assert report["state"]["sentence"] in text
    assert all(finding["sentence"] in text for finding in report["findings"])
    assert "SGD lr 0.2 · 8.97 K parameters · 1,000 steps" in text
    assert "lowdim dynamics watch run.jsonl" in text
    assert "Resumed 1 time" in text
    assert "Lines cut off 1" in text
    assert all(version in text for version in report["versions"].values())


def test_the_main_numbers_are_those_of_the_report(report):
    text = text_of(report)
    for number in ("1.01", "10.1 of 10", "step 500", "+0.98 steps undo each other", "was 0.905", "10.0 %"):
        assert number in text


def test_every_metric_of_the_page_is_explained(report):
    text = text_of(report)
    for name in ("sharpness_ratio", "alternation", "period", "erank", "drift_deg", "balance_gap"):
        assert METRICS[name].meaning in text
    assert METRICS["erank_grad"].meaning not in text
    assert set(SERIES) <= set(METRICS)


@pytest.mark.parametrize(
    "key",
    [
        *(
            "source",
            "created",
            "headers",
            "reports",
            "torn",
            "findings",
            "crossing",
            "flip",
            "last",
            "series",
        ),
        *("families", "layers", "versions", "command", "output"),
    ],
)
def test_any_part_may_be_missing(report, key):
    del report[key]
    dynamics_page(report).html()
    terminal_view(report)


@pytest.mark.parametrize("name", [*SERIES, "time"])
def test_any_series_may_be_missing(report, name):
    report["last"].pop(name, None)
    if name != "time":
        report["series"].pop(name, None)
    dynamics_page(report)
    shown(report)


def test_the_state_must_be_there(report):
    del report["state"]
    with pytest.raises(DataError, match=r"no 'state'.*lowdim dynamics watch"):
        dynamics_page(report)


def test_a_run_without_reports_has_a_page():
    empty = record(DynamicsRun("run.jsonl", (HEADER,), run_of().table.iloc[:0]))
    assert "No report yet." in text_of(empty)
    assert "No report yet." in shown(empty)


def test_loss_ratio_alternation_and_period_share_one_axis(report):
    figure, height = figures.training(report)
    assert figures.drawn(report) == ["loss", "sharpness_ratio", "alternation", "period", "osc_rank"]
    lines = {trace.yaxis: trace for trace in figure.data}
    assert len(lines) == 5
    assert list(lines["y2"].y) == report["series"]["sharpness_ratio"]
    assert {axis.matches for axis in figure.select_xaxes()} <= {None, "x5", "x"}
    assert height > 500
    edge = [shape for shape in figure.layout.shapes if shape.type == "line" and shape.y0 == shape.y1 == 1]
    assert len(edge) == 1
    assert edge[0].yref == "y2"
    band = next(shape for shape in figure.layout.shapes if shape.type == "rect")
    assert (band.x0, band.x1) == tuple(report["crossing"]) == (475, 500)
    assert {note.text for note in figure.layout.annotations} == {"passes 1 at step 500", "flips by step 600"}


def test_the_period_is_a_strip_of_colors(report):
    strip = next(trace for trace in figures.training(report)[0].data if trace.type == "heatmap")
    assert set(strip.z[0]) == {0, 2}
    assert (strip.zmin, strip.zmax) == (-0.5, 4.5)
    assert "light gray: no period, orange: period 2" in text_of(report)


def test_a_rank_that_is_always_zero_is_not_drawn_but_a_changing_rate_is(report):
    report["series"]["osc_rank"] = [0.0] * 40
    report["series"]["lr"] = [0.2 - 0.005 * at for at in range(40)]
    assert figures.drawn(report) == ["loss", "lr", "sharpness_ratio", "alternation", "period"]
    figure, _ = figures.training(report)
    assert list(figure.data[1].y) == report["series"]["lr"]


def test_nothing_to_draw():
    assert figures.training({}) is None
    assert figures.cost({"series": {"hvps": [None]}}) is None
    assert figures.balance({}) is None
    assert figures.layers({}, "erank") is None


def test_a_loss_that_is_not_positive_has_a_linear_axis(report):
    figure, _ = figures.training(report)
    assert figure.layout.yaxis.type == "log"
    report["series"]["loss"][5] = -1.0
    figure, _ = figures.training(report)
    assert figure.layout.yaxis.type is None


def test_few_layers_are_lines(report):
    figure, _ = figures.layers(report, "erank")
    assert [trace.name for trace in figure.data] == ["net.0.weight", "net.1.weight", "net.2.weight"]
    assert list(figure.data[2].y) == report["families"]["erank"]["values"][2]


def test_balancing_gaps_that_fall_by_decades_have_a_logarithmic_axis(report):
    figure, _ = figures.balance(report)
    assert figure.layout.yaxis.type == "log"
    report["families"]["balance_gap"]["values"] = [[2.0, 1.5] * 20]
    figure, _ = figures.balance(report)
    assert figure.layout.yaxis.type is None


def test_two_hundred_layers_are_a_map_with_readable_names():
    report = record(run_of(layers=200))
    figure, height = figures.layers(report, "erank")
    (found,) = figure.data
    assert len(found.z) == len(found.y) == 200
    assert 600 < height <= 1100
    assert 20 <= len(figure.layout.yaxis.tickvals) <= 45
    assert figure.layout.yaxis.ticktext[0] == "0.weight"
    # Ranks are relative to the first report; the values themselves are told when one points at them.
    assert found.z[199][0] == 0
    first, last = found.customdata[199][0], found.customdata[199][-1]
    assert found.z[199][-1] == pytest.approx(100 * (last / first - 1), abs=0.01)
    drift, _ = figures.layers(report, "drift_deg")
    assert (drift.data[0].zmin, drift.data[0].zmax) == (0, 90)
    text = text_of(report)
    assert "change since the first report" in text
    assert all(f"net.{i}.weight" in text for i in range(200))


def test_names_are_escaped(report):
    report["source"] = "<script>alert(1)</script>"
    report["families"]["erank"]["names"][0] = "<b>x</b>"
    report["layers"][0]["layer"] = "<script>alert(2)</script>"
    html = dynamics_page(report).html()
    assert "<script>alert" not in html
    assert figures.layers(report, "erank")[0].data[0].name == "&lt;b&gt;x&lt;/b&gt;"


def test_long_runs_have_a_short_table():
    text = text_of(record(run_of(reports=1000)))
    assert "Every 10th report; all of them are in the JSONL file" in text
    assert "25,000" in text


@pytest.mark.parametrize(
    ("values", "height", "lines"),
    [
        ([0, 4, 8], 1, ["▁▄█"]),
        ([0, 8, 16], 2, ["  █", "▁██"]),
        ([None, 8.0, 8.0], 1, [" ▁▁"]),
        ([None], 2, ["   ", "   "]),
        ([2, 3], 1, [" ▁█"]),
        ([1, 3, 1, 3, 7, 9], 1, ["▁▁█"]),
    ],
)
def test_charts(values, height, lines):
    assert chart(values, width=3, height=height) == lines


def test_a_chart_keeps_to_its_scale():
    (line,) = chart([-5, -1, 0, 1, 5], width=5, height=1, low=-1, high=1)
    assert line == "▁▁▄██"
    assert set(chart(list(range(9)), width=9, height=1, blocks=False)[0]) <= set(" .:-=+*#@")


@pytest.mark.parametrize(("ratio", "filled"), [(0.0, 0), (0.75, 15), (1.5, 29), (9.0, 29), (-1.0, 0)])
def test_the_gauge_is_full_at_one_and_a_half_and_marked_at_one(ratio, filled):
    bar, edge = gauge(ratio, width=30)
    assert len(bar) == 30
    assert edge == 20
    assert bar[edge] == "│"
    assert bar.count("█") == pytest.approx(filled, abs=1)


def test_the_terminal_shows_gauge_charts_and_values(report):
    text = shown(report)
    assert report["state"]["sentence"] in " ".join(text.split())
    for part in (
        "Sharpness ratio, the edge at 1",
        "1.010",
        "Loss, logarithmic",
        "Alternation score",
        "0.905",
    ):
        assert part in text
    assert re.search(r"Period +2 ", text)
    assert set(text) & set(BLOCKS[1:])
    assert max(map(len, text.splitlines())) <= 80


def test_the_live_view_fits_a_small_terminal(report):
    text = shown(report, low=True, note="Ctrl-C ends the view.")
    assert len(text.splitlines()) <= 23
    assert text.splitlines()[-1] == "Ctrl-C ends the view."


@pytest.mark.parametrize("width", [20, 40, 200])
def test_the_terminal_view_keeps_to_its_width(report, width):
    assert max(map(len, shown(report, width=max(width, 24)).splitlines())) <= max(width, 24)


def test_a_plain_terminal_gets_plain_characters(report):
    shown(report, blocks=False).encode("ascii")
