"""The page of `lowdim compress`: sentences true of the numbers, whole and partial reports."""

import copy
import html as entities
import json
import re
from pathlib import Path

import pytest

from lowdim.errors import DataError
from lowdim.report import compress_figures as figures
from lowdim.report import compress_page
from lowdim.report import compress_words as words

FULL = json.loads((Path(__file__).parent / "minilm.json").read_text())


@pytest.fixture
def report():
    return copy.deepcopy(FULL)


def text_of(report):
    html = compress_page(report).html()
    html = re.sub(r"<(script|style)[^>]*>.*?</\1>", "", html, flags=re.S)
    plain = entities.unescape(re.sub(r"<[^>]+>", "\n", html))
    return re.sub(r"\s+", " ", plain.replace("\N{NO-BREAK SPACE}", " "))


def said(report):
    return " ".join(sentence for _, sentences in words.losses(report) for sentence in sentences)


def test_the_whole_report_shows_every_part(report):
    text = text_of(report)
    for part in (
        "Kept and lost",
        "Quality",
        "Speed",
        "Parameters",
        "Layers",
        "Recovery",
        "Left alone",
        "Use it",
    ):
        assert part in text
    for layer in report["layers"]:
        assert layer["name"] in text
    for row in report["left_alone"]:
        assert row["reason"] in text
    assert report["calibration"]["text"] in text
    assert report["command"] in text
    assert all(version in text for version in report["versions"].values())


def test_the_main_numbers_are_those_of_the_report(report):
    report["bytes"] = {"before": 80_000_000, "after": 60_000_000}
    report["parameters"] |= {"compressible_before": 10_000_000, "compressible_after": 4_990_000}
    report["quality"]["cosine"] = 0.93456
    report["speed"]["1"] |= {"ratio": 1.256}
    text = text_of(report)
    for shown in (
        "60.0 MB",
        "was 80.0 MB (\N{MINUS SIGN}25.0 %)",
        "49.9 %",
        "0.935",
        "1.26\N{MULTIPLICATION SIGN}",
    ):
        assert shown in text


@pytest.mark.parametrize("key", sorted(set(FULL) - {"model", "layers"}))
def test_any_part_may_be_missing(report, key):
    del report[key]
    compress_page(report).html()
    report[key] = None
    compress_page(report).html()


def test_the_smallest_report():
    report = {"model": "net", "layers": []}
    text = text_of(report)
    assert "net was compressed with structured matrices." in text
    assert "Recovery" not in text
    assert "Speed" not in text


@pytest.mark.parametrize("key", ["model", "layers"])
def test_what_must_be_there(report, key):
    del report[key]
    with pytest.raises(DataError, match=f"no '{key}'"):
        compress_page(report)


def test_slower_is_called_slower(report):
    report["speed"] = {"1": {"before_ms": 5.0, "after_ms": 10.0, "ratio": 0.5}}
    assert "slower: it takes 2.00 times as long" in said(report)
    assert "slower" in words.headline(report)


def test_recovery_that_did_not_help_is_called_so(report):
    report["quality"]["before_recovery"]["cosine"] = report["quality"]["cosine"] + 0.01
    assert "did not help" in said(report)


def test_recovery_that_was_undone_is_called_so(report):
    worse = {**report["quality"]["before_recovery"], "cosine": 0.5}
    report["recovery"] |= {"kept": False, "quality": worse}
    report["quality"] |= report["quality"]["before_recovery"]
    text = text_of(report)
    assert "Recovery (300 steps) made the model worse (cosine to the original 0.851 to 0.500)" in text
    assert "before recovery" not in text.replace("weights before it", "").replace("before any recovery", "")
    assert [name for name, _ in words.variants(report)].count("Compressed, before recovery") == 0


def test_perplexity(report):
    report["quality"] = {
        "task": "causal",
        "perplexity_before": 20.0,
        "perplexity_after": 25.0,
        "kl": 0.2,
        "tokens": 9,
    }
    report["task"] = "causal"
    report["int8"] = None
    assert "perplexity rises from 20.00 to 25.00 (+25.0 %)" in said(report)
    assert "perplexity on held-out text is 25.00, +25.0 % against the original" in words.headline(report)
    assert "AutoModelForCausalLM" in words.loading(report)
    figure, _, caption = figures.quality(report)
    assert list(figure.data[0].y) == [20.0, 25.0]
    assert "lower is better" in caption
    report["quality"]["perplexity_after"] = 19.0
    assert "falls from 20.00 to 19.00 (\N{MINUS SIGN}5.0 %)" in said(report)
    report["quality"]["perplexity_after"] = None  # infinite: JSON has no word for it
    compress_page(report).html()


def test_a_classifier_and_a_generic_module(report):
    report["int8"] = report["recovery"] = None
    report["quality"] = {"task": "classifier", "agreement": 0.97, "kl": 0.01, "inputs": 200.0}
    assert "names the original's class in 97.0 % of the cases; in 3.0 % it names another one" in said(report)
    report["quality"] = {"task": "generic", "relative_error": 0.042, "inputs": 64.0}
    report["task"], report["architecture"] = "generic", None
    assert "the outputs differ by 4.2 % of their norm" in said(report)
    assert "load_weights(model, " in words.loading(report)
    compress_page(report).html()


def test_names_cannot_break_out(report):
    evil = "</script><img src=x onerror=alert(1)>"
    report["model"] = evil
    report["layers"][0]["name"] = evil
    report["left_alone"][0]["name"] = evil
    html = compress_page(report).html()
    assert "<img" not in html
    # plotly reads a little HTML in labels: there it is escaped once more
    figure, _ = figures.errors(report["layers"])
    hovers = [entry for trace in figure.data for entry in trace.customdata]
    assert not any("<img" in entry for entry in hovers)
    assert any("&lt;img" in entry for entry in hovers)


def test_parameters_add_up(report):
    figure, _ = figures.groups(report)
    after, before = figure.data
    assert sum(before.x) == pytest.approx(report["parameters"]["before"], rel=1e-6)
    assert sum(after.x) == pytest.approx(report["parameters"]["after"], rel=1e-3)


def test_every_layer_is_one_point_in_each_panel(report):
    figure, _ = figures.errors(report["layers"])
    assert sum(len(trace.x) for trace in figure.data) == 2 * len(report["layers"])
    for layer in report["layers"]:
        layer["output_error"] = None
    figure, _ = figures.errors(report["layers"])
    assert sum(len(trace.x) for trace in figure.data) == len(report["layers"])


def test_layers_without_numbers_in_their_names(report):
    report["layers"] = report["layers"][:3]
    for layer, name in zip(report["layers"], ("first", "second", "third"), strict=True):
        layer["name"] = name
    figure, _ = figures.errors(report["layers"])
    assert list(figure.data[0].x) == [1, 2, 3]


def test_many_layers_make_a_page_of_bearable_size(report):
    report["layers"] = [
        {**layer, "name": layer["name"].replace("layer.", f"layer.{stack}")}
        for stack in range(20)
        for layer in report["layers"]
    ]
    assert len(report["layers"]) == 720
    assert len(compress_page(report).html()) < 3_500_000


def test_quality_against_size_needs_three_points(report):
    assert len(figures.tradeoff(report).data) == 4
    report["int8"] = None
    assert figures.tradeoff(report) is None


def test_the_loss_curve_follows_the_record(report):
    figure = figures.recovery(report)
    assert list(figure.data[0].y) == pytest.approx(report["recovery"]["objective"])
    report["recovery"] = {"objective": [2.0, 1.0], "every": 10}
    assert list(figures.recovery(report).data[0].x) == [0, 10]
