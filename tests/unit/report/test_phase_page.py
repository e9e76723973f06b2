"""The pages of `lowdim phase`: what the report says is shown, and parts may be missing."""

import base64
import copy
import html as entities
import json
import re

import numpy as np
import pytest

from lowdim.errors import DataError
from lowdim.phase import Recording, recover, simulate, transition
from lowdim.report import phase_figures as figures
from lowdim.report import phase_page, transition_page

pytestmark = pytest.mark.filterwarnings("ignore::lowdim.errors.LowdimWarning")

Q, H, W = 12, 6, 7


def film():
    rng = np.random.default_rng(0)
    return np.einsum("kc,ic,jc->kij", *(rng.normal(size=(n, 2)) for n in (Q, H, W)))


@pytest.fixture(scope="module")
def whole():
    """A recording with a truth, its ranks chosen, as report.json tells of it."""
    report = recover(simulate(film(), measurements=1.5, noise=0.02), max_iter=20).report
    return json.loads(json.dumps({**report, "command": "lowdim phase recover a.npz", "output": "out"}))


@pytest.fixture
def report(whole):
    return copy.deepcopy(whole)


@pytest.fixture(scope="module")
def tried():
    found = transition(
        film(), ranks=(2, 2, 2), grid=[0.2, 1.0], seeds=2, n_init=1, max_iter=30, methods=["tucker", "rwf"]
    )
    return json.loads(
        json.dumps({**found.report, "command": "lowdim phase transition a.tif", "output": "out"})
    )


def text_of(page):
    html = re.sub(r"<(script|style)[^>]*>.*?</\1>", "", page.html(), flags=re.S)
    plain = entities.unescape(re.sub(r"<[^>]+>", "\n", html))
    return re.sub(r"\s+", " ", plain.replace("\N{NO-BREAK SPACE}", " "))


def test_the_whole_report_shows_every_part(report):
    report["notes"] = ["Something to know."]
    text = text_of(phase_page(report))
    for part in ("Video", "Frame by frame", "Ranks", "Convergence", "Use it", "How it was made"):
        assert part in text
    assert report["sentence"] in text
    assert "lowdim phase recover a.npz" in text
    assert "PhaseResult.load('out')" in text
    assert "Something to know." in text
    assert "method: Tucker" in text
    assert all(version in text for version in report["versions"].values())
    assert f"{report['choice']['held_out']} magnitudes left out of the fits" in text


def test_the_main_numbers_are_those_of_the_report(report):
    report |= {"ratio": 0.25, "measurements": 1234, "frames": 40, "unknowns": 5678}
    report["error"]["total"], report["unexplained"]["total"] = 0.1234, 0.0567
    text = text_of(phase_page(report))
    for shown in ("12.3 %", "5.7 %", "0.25", "1,234 per frame", "5,678", "49,360 magnitudes"):
        assert shown in text


def test_the_candidates_stand_in_a_table_with_the_chosen_one(report):
    text = text_of(phase_page(report))
    for row in report["choice"]["candidates"]:
        assert ", ".join(map(str, row["ranks"])) in text
    assert text.count(" yes ") == 1


@pytest.mark.parametrize("passed", [True, False])
def test_the_gate_is_told(report, passed):
    text = text_of(phase_page({**report, "gate": {"max_unexplained": 0.1, "passed": passed}}))
    assert f"{'Passed' if passed else 'Failed'} At most 10.0 % may stay unexplained." in text


@pytest.mark.parametrize(
    "key",
    [
        *("source", "created", "ranks", "choice", "map", "real", "frames", "image_shape", "measurements"),
        *("ratio", "unknowns", "loss", "converged", "error", "singular_values", "sentence", "settings"),
        *("seed", "notes", "seconds", "versions", "pictures", "film", "command", "output"),
    ],
)
def test_any_part_may_be_missing(report, key):
    del report[key]
    phase_page(report).html()


@pytest.mark.parametrize("key", ["method", "unexplained"])
def test_what_must_be_there(report, key):
    del report[key]
    with pytest.raises(DataError, match=key):
        phase_page(report)


def test_images_are_true_recovered_and_different(report):
    figure, height = figures.pictures(report)
    record = report["pictures"]
    assert len(figure.data) == 3 * len(record)
    assert height == 650
    truth, recovered, difference = (np.array(figure.data[i].z) for i in range(3))
    np.testing.assert_allclose(truth, film()[record[0]["frame"]], rtol=1e-3)
    np.testing.assert_allclose(difference, recovered - truth, atol=2e-3 * np.abs(truth).max())
    assert figure.data[2].zmin == -figure.data[2].zmax


def test_without_a_truth_there_is_one_row_and_one_film():
    known = simulate(film(), measurements=1)
    blind = recover(Recording(known.y, A=known.A), ranks=(2, 2, 2)).report
    figure, height = figures.pictures(blind)
    assert len(figure.data) == len(blind["pictures"])
    assert height == 250
    assert len(figures.film(blind)[0].data) == Q
    assert len(figures.per_frame(blind).data) == 1
    text = text_of(phase_page(blind))
    assert "nearest to the frame before" in text
    assert "of the norm of the true frames" not in text


def test_the_film_shows_one_frame_at_a_time(report):
    figure, _ = figures.film(report)
    assert len(figure.data) == 2 * Q
    steps = figure.layout.sliders[0].steps
    assert [step.label for step in steps] == [str(frame) for frame in range(Q)]
    for number, step in enumerate(steps):
        (change,) = step.args
        assert [i for i, seen in enumerate(change["visible"]) if seen] == [number, Q + number]
    assert [trace.visible for trace in figure.data] == ([True] + [False] * (Q - 1)) * 2
    levels = np.frombuffer(base64.b64decode(report["film"]["truth"]), dtype=np.uint8).reshape(Q, H, W)
    np.testing.assert_array_equal(figure.data[3].z, levels[3])
    assert (
        np.corrcoef(levels.ravel(), np.clip(film(), *np.percentile(film(), [0.5, 99.5])).ravel())[0, 1]
        > 0.999
    )


def test_curves_hold_the_numbers_of_the_report(report):
    error, left = figures.per_frame(report).data
    assert list(error.y) == report["error"]["per_frame"]
    assert list(left.y) == report["unexplained"]["per_frame"]
    (loss,) = figures.loss(report).data
    np.testing.assert_allclose(loss.y, np.sqrt(report["loss"]))
    assert len(figures.spectra(report).data) == 3
    assert figures.loss({"loss": [0.1]}) is None


def test_complex_images_are_shown_by_their_magnitudes():
    spun = simulate(film() + 0.5j, kind="complex-gaussian", measurements=1)
    report = recover(spun, ranks=(2, 2, 3), n_init=1, max_iter=5).report
    assert "shown by their magnitudes" in text_of(phase_page(report))
    figure, _ = figures.pictures(report)
    assert figure.data[2].zmin == 0


def test_frames_one_by_one_have_no_model_and_no_sweeps():
    report = recover(simulate(film(), measurements=4), method="rwf").report
    text = text_of(phase_page({**report, "output": "out"}))
    assert "method: frame by frame" in text
    assert "result.model" not in text
    assert "Convergence" not in text


def test_names_are_escaped(report):
    report["source"] = "<script>alert(1)</script>"
    report["singular_values"][0]["mode"] = "</script><script>alert(2)"
    html = phase_page(report).html()
    assert "<script>alert(1)" not in html
    assert "<script>alert(2)" not in html


def test_the_transition_shows_every_try(tried):
    text = text_of(transition_page(tried))
    assert (
        "Measurements per pixel for an error below 10 %: Tucker needs 1; frame by frame needs more than 1."
        in text
    )
    assert "Transition.load('out')" in text
    assert "All tries" in text
    assert "12 frames of 6 \N{MULTIPLICATION SIGN} 7" in text
    figure = figures.transition(tried)
    lines = [trace for trace in figure.data if trace.showlegend is not False]
    assert [line.name for line in lines] == ["Tucker", "frame by frame"]
    errors = [row["error"] for row in tried["rows"] if row["method"] == "rwf" and row["measurements"] == 1.0]
    assert lines[1].y[1] == pytest.approx(np.median(errors))
    points = [trace for trace in figure.data if trace.showlegend is False]
    assert sum(len(trace.x) for trace in points) == len(tried["rows"])


def test_a_transition_without_a_figure_or_a_row(tried):
    failed = [{**row, "error": None} for row in tried["rows"]]
    assert figures.transition({"rows": failed}) is None
    assert "needs more than 1" in text_of(transition_page({"rows": failed}))
    good = [{**row, "error": 0.01} for row in tried["rows"]]
    assert "Tucker needs at most 0.2" in text_of(transition_page({"rows": good}))
    with pytest.raises(DataError, match="rows"):
        transition_page({})


@pytest.mark.parametrize(
    "key", ["source", "created", "frames", "image_shape", "settings", "seconds", "versions"]
)
def test_parts_of_a_transition_may_be_missing(tried, key):
    transition_page({name: value for name, value in tried.items() if name != key}).html()
