"""The page of `lowdim compress`: sentences true of the numbers, whole and partial reports."""

import copy
import html as entities
import io
import json
import re
from pathlib import Path

import pytest
from rich.console import Console

from lowdim.cli import compress as command
from lowdim.cli import manners
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


@pytest.fixture
def in_int8(report):
    """The report of a run with --quantize int8: bytes.after is the file of integers."""
    report["quantize"] = "int8"
    report["bytes"] = {"before": 90_000_000, "after": 54_321_000, "float": 71_000_000}
    report["int8"]["compressed"]["quality"]["cosine"] = 0.9208
    for batch, ratio in (("1", 0.52), ("32", 1.1)):
        report["int8"]["compressed"]["speed"][batch]["ratio"] = ratio
    return report


def test_the_page_of_int8_is_about_the_files_and_shows_the_floats_beside(in_int8):
    text = text_of(in_int8)
    headline = words.headline(in_int8)
    assert "with BLAST and int8" in headline
    assert "from 90.0 MB to 54.3 MB" in headline
    assert "at batch size 1 it is slower: it takes 1.92 times as long" in headline
    assert "a mean cosine of 0.921" in headline
    assert "in int8; 0.931 with float factors" in text
    assert "a mean cosine of 0.921 to the original's; one in twenty falls below 0.883" in said(in_int8)
    assert "float factors (not written) takes 71.0 MB" in said(in_int8)
    assert "int8 on top of the compressed layers takes 54.3 MB" in said(in_int8)
    found = dict(words.variants(in_int8))
    assert found["Compressed, int8"]["bytes"] == 54_321_000
    assert found["Compressed, float factors"]["bytes"] == 71_000_000
    assert found["Compressed, float factors"]["quality"]["cosine"] == 0.9312
    assert "Float factors, ms" in text


def test_a_diffusers_model_is_built_from_its_config_and_filled(report):
    report |= {"library": "diffusers", "architecture": "DiTTransformer2DModel", "task": "generic"}
    code = words.loading(report)
    assert 'DiTTransformer2DModel.load_config("demo", subfolder="architecture")' in code
    assert "import load_weights" in code
    assert "transformers" not in code


def printed(report, width, monkeypatch):
    stream = io.StringIO()
    monkeypatch.setattr(manners, "out", Console(file=stream, width=width))
    command._show(report, Path("out"))
    return stream.getvalue()


def test_the_table_of_layers_has_the_times_where_there_is_room(report, monkeypatch):
    for number, layer in enumerate(report["layers"]):
        layer |= {"dense_ms": 1.25 + number, "compressed_ms": 0.75 + number}
    wide = printed(report, 120, monkeypatch)
    row = next(line for line in wide.splitlines() if line.startswith("encoder.layer.0.attention.self.query"))
    assert row.split()[-4:] == ["0.384", "0.183", "1.250", "0.750"]
    assert re.search(r"Dense\s+Compressed", wide)
    narrow = printed(report, 80, monkeypatch)
    assert "Dense" not in narrow
    assert max(map(len, narrow.splitlines())) <= 80
    assert "0.384" in narrow
    del report["layers"][0]["dense_ms"], report["layers"][0]["compressed_ms"]
    printed(report, 120, monkeypatch)


def test_the_summary_of_int8_is_that_of_the_files(in_int8, monkeypatch):
    lines = printed(in_int8, 120, monkeypatch).splitlines()
    disk = next(line for line in lines if line.startswith("weights on disk"))
    assert re.split(r"\s{2,}", disk) == ["weights on disk", "90.0 MB", "54.3 MB", "71.0 MB"]
    assert "int8 of the original: 58.9 MB" in lines
    assert not any(line.startswith("int8 of the compressed") for line in lines)
    assert max(map(len, printed(in_int8, 80, monkeypatch).splitlines())) <= 80


def lines_of_progress(monkeypatch, work):
    stream = io.StringIO()
    monkeypatch.setattr(manners, "console", Console(file=stream, width=120))
    with command._progress(quiet=False) as tell:
        work(tell)
    return stream.getvalue()


def test_the_plan_has_a_line_from_the_start_to_the_end(monkeypatch):
    def work(tell):
        tell("plan", 3, 3, "")
        tell("calibrate", 2, 2, "")

    shown = lines_of_progress(monkeypatch, work)
    assert re.search(r"plan .*3/3", shown)
    assert re.search(r"plan .*3/3", lines_of_progress(monkeypatch, lambda tell: None)), "a finished run"


def test_loading_and_hashing_the_weights_are_told(monkeypatch):
    stream = io.StringIO()
    monkeypatch.setattr(manners, "console", Console(file=stream, width=160))
    with pytest.raises(KeyboardInterrupt), command._progress(quiet=False):
        raise KeyboardInterrupt  # in the middle of it
    assert re.search(r"plan .*loading the model and hashing its weights.*0/3", stream.getvalue())


def test_what_is_refused_at_the_door_leaves_no_line(monkeypatch):
    stream = io.StringIO()
    monkeypatch.setattr(manners, "console", Console(file=stream, width=120))
    with pytest.raises(DataError), command._progress(quiet=False):
        raise DataError("no such model")
    assert "plan" not in stream.getvalue()
