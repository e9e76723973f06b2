"""`lowdim track` as a user runs it."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from typer.testing import CliRunner

import lowdim.cli
from lowdim.runs import Run, read_tensors
from lowdim.track import TrackResult

pytestmark = pytest.mark.filterwarnings("ignore")

T, D = 60, 8
TIMED = ("seconds", "created", "command", "output")


def call(*words: object, code: int = 0):
    """Run a command line in this process; return its outcome."""
    result = CliRunner().invoke(lowdim.cli.build(), ["track", *map(str, words)])
    assert result.exit_code == code, result.output
    return result


def told(result) -> str:
    """The text of a panel, without its frame and line breaks."""
    return " ".join(result.stderr.translate(str.maketrans("", "", "│╭╮╰╯─")).split())


def lasting(report: dict) -> dict:
    return {key: value for key, value in report.items() if key not in TIMED}


@pytest.fixture(scope="module")
def file(tmp_path_factory) -> Path:
    """A table of dates and eight sensors near a line that turns by 75 degrees, a third of it missing."""
    rng = np.random.default_rng(0)
    angle = np.radians(75) * np.linspace(0, 1, T)[:, None]
    Q = np.linalg.qr(rng.normal(size=(D, 2)))[0]
    X = (np.cos(angle) * Q[:, 0] + np.sin(angle) * Q[:, 1]) * rng.normal(size=(T, 1))
    X = np.where(rng.random((T, D)) < 1 / 3, np.nan, X + 0.02 * rng.normal(size=(T, D)))
    table = pd.DataFrame(X, columns=[f"s{i}" for i in range(D)])
    table.insert(0, "day", pd.date_range("2024-01-01", periods=T).strftime("%Y-%m-%d"))
    table.insert(D + 1, "hours", 24 * np.arange(T))
    table.insert(D + 2, "site", "north")
    path = tmp_path_factory.mktemp("track") / "sensors.csv"
    table.to_csv(path, index=False)
    return path


SENSORS = [word for i in range(D) for word in ("--column", f"s{i}")]


@pytest.fixture(scope="module")
def done(file, tmp_path_factory) -> tuple[Path, str]:
    out = tmp_path_factory.mktemp("done") / "out"
    result = call(file, "-o", out, "-k", 1, *SENSORS)
    return out, result.stdout


def test_it_writes_data_model_report_and_page(done, file):
    out, shown = done
    assert {path.name for path in out.iterdir()} == {
        *("imputed.csv", "angles.csv", "model", "report.json", "report.html", "manifest.json", ".lock")
    }
    filled, given = pd.read_csv(out / "imputed.csv"), pd.read_csv(file)
    assert list(filled.columns) == ["day", *(f"s{i}" for i in range(D))]
    assert not filled.isna().any().any()
    seen = given[filled.columns].notna()
    pd.testing.assert_frame_equal(filled.where(seen), given[filled.columns])
    report = json.loads((out / "report.json").read_text())
    assert report["model"] == "geodesic"
    assert report["turned"] == pytest.approx(75, abs=5)
    assert report["source"] == "sensors.csv"
    text = " ".join(shown.split())
    assert report["comparison"]["sentence"] in text
    assert f"Model: geodesic, 1 component; it turned by {report['turned']:.1f} degrees." in text
    assert f"{report['filled']:,} filled in" in text
    assert len(rows_of(shown)) == len(report["comparison"]["table"])
    angles = pd.read_csv(out / "angles.csv")
    assert np.degrees(angles["angle_1"].iloc[-1]) == pytest.approx(report["turned"], abs=0.01)


def rows_of(shown: str) -> list[str]:
    return [line for line in shown.splitlines() if line.startswith(("static ", "geodesic "))]


def test_the_result_loads_and_goes_on(done):
    result = TrackResult.load(done[0])
    assert result.imputed.shape == (T, D)
    assert result.model.basis(result.times).shape == (T, D, 1)


def test_json_is_the_report_and_nothing_else(file, tmp_path):
    result = call(file, "-o", tmp_path / "out", "-k", 1, *SENSORS, "--json")
    assert json.loads(result.stdout) == json.loads((tmp_path / "out" / "report.json").read_text())
    assert "compare" in result.stderr


def test_without_output_the_finding_is_shown_and_nothing_written(file, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    result = call(file, "-k", 1, *SENSORS)
    assert "The subspace moves" in result.stdout
    assert "add -o OUT" in result.stdout
    assert list(tmp_path.iterdir()) == []


def test_every_option_counts(file, done):
    plain = json.loads((done[0] / "report.json").read_text())

    def report(*words: object) -> dict:
        return json.loads(call(file, *SENSORS, *words, "--json").stdout)

    assert report("-k", 2)["n_components"] == 2
    assert report("--components", 1, "--model", "grouse")["model"] == "grouse"
    assert report("-k", 1, "--time", "hours")["time"] == {
        **{"kind": "numbers", "name": "hours", "first": 0.0, "last": 24.0 * (T - 1)}
    }
    assert report("-k", 1, "--held-out", 0.2)["comparison"]["held_out"] > plain["comparison"]["held_out"]
    for words in (("--ridge", 0.1), ("--seed", 7)):
        assert report("-k", 1, *words)["comparison"]["table"] != plain["comparison"]["table"]
    assert report("-k", 1, "--starts", 2)["settings"]["n_init"] == 2
    one, drawn = (report("-k", 1, "--model", "geodesic", "--draws", n) for n in (0, 5))
    assert drawn["settings"]["draws"] == 5
    assert drawn["turned"] != one["turned"]
    assert "none were taken" in report("-k", 1, "--model", "static", "--draws", 5)["notes"][0]


def test_automatic_components_and_images(tmp_path):
    image = pytest.importorskip("PIL.Image", reason="Pillow is not installed")
    rng = np.random.default_rng(0)
    shade = rng.uniform(0.2, 1, size=(8, 1, 1)) * rng.uniform(50, 250, size=(4, 5))
    (tmp_path / "film").mkdir()
    for number, frame in enumerate(shade):
        alpha = np.where(rng.random(frame.shape) < 0.1, 0, 255)
        pair = np.dstack([frame, alpha]).astype(np.uint8)
        image.fromarray(pair).save(tmp_path / "film" / f"{number}.png")
    call(tmp_path / "film", "-o", tmp_path / "out")
    assert np.load(tmp_path / "out" / "imputed.npy").shape == (8, 4, 5)
    report = json.loads((tmp_path / "out" / "report.json").read_text())
    assert report["settings"]["n_components"] == "auto"
    assert report["pictures"]


@pytest.mark.parametrize(
    ("words", "text"),
    [
        ((), "column 'site' of sensors.csv holds 'north', expected numbers"),
        (("--time", "moon", *SENSORS), "sensors.csv has no column 'moon'. Columns: day, s0"),
        (("--time", "site", *SENSORS), "holds 'north', expected times"),
        (("--column", "s99"), "sensors.csv has no column 's99'"),
        (("-k", "many"), "--components many: expected auto, or a number such as 3"),
        (("-k", "0"), "--components 0: expected auto"),
        (("-k", "5", *SENSORS), "n_components=5 is too large"),
        (("--held-out", "0", *SENSORS), "held_out=0 must be between 0 and 1"),
        (("--ridge", "-1", *SENSORS), "ridge=-1 must be a positive number"),
        (("--starts", "0", *SENSORS), "n_init=0 starts are too few"),
        (("--draws", "-1", *SENSORS), "draws=-1 must not be negative"),
        (("--model", "magic"), "Invalid value for '--model'"),
        (("--resume", "--restart", *SENSORS), "Give only one"),
    ],
)
def test_bad_input_is_one_panel_and_leaves_nothing(file, tmp_path, words, text):
    out = tmp_path / "out"
    assert text in told(call(file, "-o", out, *words, code=2))
    assert not out.exists()


def test_files_that_cannot_be_read(tmp_path):
    assert "there is no file" in told(call(tmp_path / "none.csv", code=2))
    (tmp_path / "a.doc").write_text("x")
    assert "a.doc has no known format" in told(call(tmp_path / "a.doc", code=2))
    np.save(tmp_path / "a.npy", np.ones((3, 4)))
    assert "expected at least 4 times" in told(call(tmp_path / "a.npy", code=2))
    assert "need the output folder" in told(call(tmp_path / "a.npy", "--resume", code=2))


def test_it_is_not_repeated_but_can_be_resumed_or_restarted(done, file):
    out, _ = done
    words = [file, "-o", out, *SENSORS]
    again = call(*words, "-k", 1, code=2)
    assert "already holds a finished run" in told(again)
    assert "--resume" in told(again)
    assert "ridge was 1e-06 and is now 0.5" in told(call(*words, "-k", 1, "--ridge", 0.5, "--resume", code=2))
    before = (out / "imputed.csv").stat().st_mtime_ns
    report = lasting(json.loads((out / "report.json").read_text()))
    shown = call(*words, "-k", 1, "--resume").stdout
    assert (out / "imputed.csv").stat().st_mtime_ns == before
    assert "The subspace moves" in shown
    call(*words, "-k", 1, "--restart")
    assert (out / "imputed.csv").stat().st_mtime_ns > before
    assert lasting(json.loads((out / "report.json").read_text())) == report


def test_a_folder_in_use_is_refused(file, tmp_path):
    out = tmp_path / "out"
    with Run.open(out, command="track", arguments={}, seed=0):
        assert "is in use by another lowdim process" in told(call(file, "-o", out, *SENSORS, code=2))


def test_foreign_folders_are_safe(file, tmp_path):
    (tmp_path / "letter.txt").write_text("mine")
    assert "is not empty" in told(call(file, "-o", tmp_path, *SENSORS, "--restart", code=2))
    assert (tmp_path / "letter.txt").read_text() == "mine"


@pytest.mark.parametrize("blow", [signal.SIGKILL, signal.SIGINT], ids=["killed", "interrupted"])
def test_a_run_that_was_stopped_goes_on_to_the_same_result(done, file, tmp_path, blow):
    out = tmp_path / "out"
    words = [file, "-o", out, "-k", 1, *SENSORS]
    # It waits between the comparison and the fit, where it is stopped.
    code = (
        # What runs in the background of a script inherits that interruptions are ignored.
        "import signal\nsignal.signal(signal.SIGINT, signal.default_int_handler)\n"
        "import sys, time\nfrom lowdim.track import pipeline\n"
        "pipeline.Job.fit = lambda job: time.sleep(600)\n"
        "from lowdim.cli import main\nmain(sys.argv[1:])\n"
    )
    process = subprocess.Popen(
        [sys.executable, "-c", code, "track", *map(str, words)],
        stderr=subprocess.PIPE,
        stdout=subprocess.DEVNULL,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        text=True,
    )
    kept = out / ".work" / "comparison.json"
    deadline = time.monotonic() + 120
    while not kept.exists() and process.poll() is None and time.monotonic() < deadline:
        time.sleep(0.05)
    assert kept.exists()
    refused = told(call(*words, "--resume", code=2))
    assert f"is in use by another lowdim process (process id {process.pid})" in refused
    process.send_signal(blow)
    _, said = process.communicate(timeout=60)
    if blow is signal.SIGINT:
        assert process.returncode == 130
        assert "--resume" in said
    assert not (out / "report.json").exists()
    assert "already holds an unfinished run" in told(call(*words, code=2))
    resumed = call(*words, "--resume")
    assert "done before" in resumed.stderr
    first, second = (json.loads((folder / "report.json").read_text()) for folder in (done[0], out))
    assert lasting(first) == lasting(second)
    for name in ("imputed.csv", "angles.csv"):
        assert (out / name).read_bytes() == (done[0] / name).read_bytes(), name
    (first, _), (second, _) = (read_tensors(f / "model/model.safetensors") for f in (done[0], out))
    assert all((first[name] == second[name]).all() for name in first)


def test_help_tells_every_option():
    shown = call("--help").stdout
    for option in (
        *("--output", "--time", "--column", "--components", "--model", "--held-out", "--ridge", "--starts"),
        *("--draws", "--seed", "--resume", "--restart", "--json"),
    ):
        assert option in shown
