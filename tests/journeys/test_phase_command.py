"""`lowdim phase` as a user runs it: simulate, recover, transition."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from typer.testing import CliRunner

import lowdim.cli
from lowdim.phase import PhaseResult, Transition, read_recording, relative_error
from lowdim.runs import Run, read_tensors

pytestmark = pytest.mark.filterwarnings("ignore")

TIMED = ("seconds", "created", "command", "output")


def call(*words: object, code: int = 0):
    """Run a command line in this process; return its outcome."""
    result = CliRunner().invoke(lowdim.cli.build(), ["phase", *map(str, words)])
    assert result.exit_code == code, result.output
    return result


def told(result) -> str:
    """The text of a panel, without its frame and line breaks."""
    return " ".join(result.stderr.translate(str.maketrans("", "", "│╭╮╰╯─")).split())


def shown(result) -> str:
    return " ".join(result.stdout.split())


def lasting(report: dict) -> dict:
    return {key: value for key, value in report.items() if key not in TIMED}


@pytest.fixture(scope="module")
def video(tmp_path_factory) -> Path:
    """Real images: coins that move down before a camera man, whose light changes."""
    data = pytest.importorskip("skimage.data", reason="scikit-image is not installed: no real video")
    from skimage.transform import resize

    background = resize(data.camera() / 255.0, (24, 24), anti_aliasing=True)
    coins = resize(data.coins() / 255.0, (6, 6), anti_aliasing=True)
    film = np.stack([background * (1 + 0.2 * np.sin(2 * np.pi * k / 40)) for k in range(40)]) / 1.25
    for k, row in enumerate(np.linspace(2, 16, 40).round().astype(int)):
        film[k, row : row + 6, 9:15] = coins
    path = tmp_path_factory.mktemp("video") / "film.npy"
    np.save(path, film)
    return path


@pytest.fixture(scope="module")
def film(tmp_path_factory) -> Path:
    """A small film of Tucker rank (2, 2, 2)."""
    rng = np.random.default_rng(0)
    path = tmp_path_factory.mktemp("film") / "small.npy"
    np.save(path, np.einsum("kc,ic,jc->kij", *(rng.random((n, 2)) for n in (12, 6, 7))))
    return path


@pytest.fixture(scope="module")
def recording(film, tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("recording") / "small.npz"
    call("simulate", film, "-o", path, "-m", 1.5, "--noise", 0.01)
    return path


@pytest.fixture(scope="module")
def done(recording, tmp_path_factory) -> tuple[Path, str]:
    out = tmp_path_factory.mktemp("done") / "out"
    return out, shown(call("recover", recording, "-o", out))


def test_a_real_video_is_recovered_from_a_quarter_of_the_measurements(video, tmp_path):
    file, out = tmp_path / "camera.npz", tmp_path / "out"
    said = call("simulate", video, "-o", file, "-m", 0.25).stdout
    assert "40 frames of 24 x 24 pixels, 144 magnitudes each (25% of the pixels)" in " ".join(said.split())
    result = call("recover", file, "-o", out, "--ranks", "8,8,3", "--max-unexplained", 0.1)
    report = json.loads((out / "report.json").read_text())
    assert report["error"]["total"] < 0.08
    assert relative_error(np.load(out / "frames.npy"), np.load(video)) == pytest.approx(
        report["error"]["total"]
    )
    assert f"the error is {report['error']['total']:.2%}" in shown(result)
    assert report["gate"] == {"max_unexplained": 0.1, "passed": True}
    assert report["ratio"] == 0.25
    wrong = call(
        "recover", file, "-o", out, "--ranks", "8,8,3", "--resume", "--max-unexplained", 0.01, code=1
    )
    assert "More than 1.0% stays unexplained." in shown(wrong)
    assert json.loads((out / "report.json").read_text())["gate"]["passed"] is False
    assert "<b>Failed</b>" in (out / "report.html").read_text()


def test_it_writes_frames_model_report_and_page(done):
    out, said = done
    names = {path.name for path in out.iterdir()} - {"frames.gif"}
    assert names == {"frames.npy", "model", "report.json", "report.html", "manifest.json", ".lock"}
    report = json.loads((out / "report.json").read_text())
    assert report["ranks"] == [2, 2, 2]
    assert report["error"]["total"] < 0.02
    assert report["source"] == "small.npz"
    assert report["sentence"] in said
    for row in report["choice"]["candidates"]:
        assert ", ".join(map(str, row["ranks"])) in said
    assert "report.html" in said


def test_the_result_loads_and_goes_on(done):
    result = PhaseResult.load(done[0])
    assert result.frames.shape == (12, 6, 7)
    assert result.model.core_.shape == (2, 2, 2)


def test_json_is_the_report_and_nothing_else(recording, tmp_path):
    out = tmp_path / "out"
    result = call("recover", recording, "-o", out, "-r", "2,2,2", "--json")
    assert json.loads(result.stdout) == json.loads((out / "report.json").read_text())
    assert "recover" in result.stderr


def test_without_output_the_finding_is_shown_and_nothing_written(recording, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    said = shown(call("recover", recording, "-r", "2,2,2"))
    assert "12 frames of 42 pixels were recovered" in said
    assert "add -o OUT" in said
    assert list(tmp_path.iterdir()) == []


def test_every_option_counts(recording, done):
    plain = json.loads((done[0] / "report.json").read_text())

    def report(*words: object) -> dict:
        return json.loads(call("recover", recording, *words, "--json").stdout)

    low = report("--method", "lowrank", "--ranks", "2")
    assert (low["method"], low["ranks"]) == ("lowrank", [2])
    single = report("--method", "rwf", "--max-iter", 7)
    assert (single["ranks"], single["settings"]["max_iter"]) == (None, 7)
    ranks = ("--ranks", "2x2x2")
    assert len(report(*ranks, "--max-iter", 3, "--starts", 1)["loss"]) == 3
    robust = report(*ranks, "--robust")
    assert robust["left_out"] is not None
    random = report(*ranks, "--init", "random", "--seed", 3)
    assert random["seed"] == 3
    assert random["loss"][0] != plain["loss"][0]


def test_maps_noise_and_sizes_of_simulations(film, tmp_path):
    def made(*words: object):
        file = tmp_path / "a.npz"
        result = call("simulate", film, "-o", file, *words, "--restart", "--json")
        record, found = json.loads(result.stdout), read_recording(file)
        assert record["bytes"] == file.stat().st_size
        assert (record["frames"], record["measurements"]) == found.y.shape
        assert record["map"] == found.kind
        return found

    assert np.iscomplexobj(made("--kind", "complex-gaussian").A)
    assert made("--kind", "coded-diffraction", "-m", 2).masks.shape == (12, 2, 6, 7)
    assert made("--kind", "ptychography", "-m", 4).probe.shape == (4, 4)
    assert made("--size", "4x3", "--frames", 5).frames.shape == (5, 4, 3)
    assert made("--size", 4).image_shape == (4, 4)
    clean, other = made(), made("--seed", 1)
    assert not np.array_equal(clean.A, other.A)
    assert not np.array_equal(clean.y, made("--noise", 0.1).y)
    assert (clean.y != made("--outliers", 0.3).y).mean() == pytest.approx(0.3, abs=0.1)


def test_real_frames_behind_masks(film, tmp_path):
    call("simulate", film, "-o", tmp_path / "a.npz", "--kind", "coded-diffraction", "-m", 1)
    words = ("recover", tmp_path / "a.npz", "-r", "2,2,2", "--json")
    assert json.loads(call(*words, "--real").stdout)["error"]["total"] < 1e-2
    free = json.loads(call(*words).stdout)
    assert free["real"] is False
    assert "(--real)" in free["notes"][-1]


def test_transitions_are_tried_kept_and_shown(film, tmp_path):
    out = tmp_path / "out"
    words = ("transition", film, "-o", out, "-r", "2,2,2", "--grid", "0.2,1.5", "--seeds", 2, "--starts", 1)
    said = shown(call(*words))
    assert {path.name for path in out.iterdir()} == {
        *("transition.csv", "report.json", "report.html", "manifest.json", ".lock")
    }
    found = Transition.load(out)
    assert len(found.table) == 12
    assert f"{found.medians().loc[1.5, 'tucker']:.2g}" in said
    assert "already holds a finished run" in told(call(*words, code=2))
    again = json.loads(call(*words, "--resume", "--json").stdout)
    assert again["rows"] == found.report["rows"]
    few = json.loads(
        call(
            "transition", film, "-r", "2,2,2", "--grid", 1, "--method", "lowrank", "--rank", 3, "--json"
        ).stdout
    )
    assert [row["method"] for row in few["rows"]] == ["lowrank"]
    assert few["settings"]["rank"] == 3


@pytest.mark.parametrize(
    ("words", "text"),
    [
        (("-r", "many"), "--ranks many: expected positive numbers such as 8,8,3"),
        (("-r", "2,0,2"), "--ranks 2,0,2: expected positive numbers"),
        (("-r", "2,2"), "ranks=(2, 2) do not fit images (6, 7)"),
        (("-r", "7,2,2"), "rank 7 of image axis 0 exceeds"),
        (("--method", "lowrank"), "needs one rank"),
        (("--method", "rwf", "-r", "2,2,2"), "has no ranks"),
        (("--method", "magic"), "Invalid value for '--method'"),
        (("--starts", "0", "-r", "2,2,2"), "n_init=0 must be an integer >= 1"),
        (("--max-iter", "0"), "max_iter=0 must be"),
        (("--max-unexplained", "0"), "--max-unexplained 0: expected a fraction"),
        (("--resume", "--restart"), "Give only one"),
    ],
)
def test_bad_input_is_one_panel_and_leaves_nothing(recording, tmp_path, words, text):
    out = tmp_path / "out"
    assert text in told(call("recover", recording, "-o", out, *words, code=2))
    assert not out.exists()


def test_files_that_cannot_be_used(film, recording, tmp_path):
    def refused(*words: object) -> str:
        return told(call(*words, code=2))

    assert "does not exist" in refused("recover", tmp_path / "none.npz")
    assert "one array without a name" in refused("recover", film)
    np.savez(tmp_path / "a.npz", y=np.ones((3, 4)))
    assert "neither A, nor masks, nor a probe" in refused("recover", tmp_path / "a.npz")
    np.savez(tmp_path / "a.npz", y=np.array([{}, None], dtype=object))
    assert "nothing is unpickled" in refused("recover", tmp_path / "a.npz")
    (tmp_path / "a.npz").write_bytes(recording.read_bytes()[:999])
    assert "a.npz cannot be read" in refused("recover", tmp_path / "a.npz")
    assert "need the output folder" in refused("recover", recording, "--resume")
    before = recording.read_bytes()
    assert "is there already" in refused("simulate", film, "-o", recording)
    assert recording.read_bytes() == before
    assert "must end in .npz" in refused("simulate", film, "-o", tmp_path / "b.mat")
    assert "There is no folder" in refused("simulate", film, "-o", tmp_path / "none" / "b.npz")
    new = tmp_path / "b.npz"
    assert "--size big: expected height x width" in refused("simulate", film, "-o", new, "--size", "big")
    assert "cannot light all pixels" in refused("simulate", film, "-o", new, "--kind", "ptychography")
    assert "noise=-1 must be" in refused("simulate", film, "-o", new, "--noise", -1)
    assert "expected (frames, height, width)" in refused("simulate", recording_of_one(tmp_path), "-o", new)
    assert not new.exists()
    assert "--grid fine: expected numbers" in refused("transition", film, "-r", "2,2,2", "--grid", "fine")
    assert "must be measurements per pixel" in refused("transition", film, "-r", "2,2,2", "--grid", "0")


def recording_of_one(folder: Path) -> Path:
    np.save(folder / "one.npy", np.ones((4, 4)))
    return folder / "one.npy"


def test_it_is_not_repeated_but_can_be_resumed_or_restarted(done, recording):
    out, _ = done
    words = ("recover", recording, "-o", out)
    again = told(call(*words, code=2))
    assert "already holds a finished run" in again
    assert "--resume" in again
    assert "robust was False and is now True" in told(call(*words, "--robust", "--resume", code=2))
    before = (out / "frames.npy").stat().st_mtime_ns
    report = lasting(json.loads((out / "report.json").read_text()))
    assert "12 frames of 42 pixels" in shown(call(*words, "--resume"))
    assert (out / "frames.npy").stat().st_mtime_ns == before
    call(*words, "--restart")
    assert (out / "frames.npy").stat().st_mtime_ns > before
    assert lasting(json.loads((out / "report.json").read_text())) == report


def test_a_folder_in_use_is_refused_and_foreign_folders_are_safe(recording, tmp_path):
    out = tmp_path / "out"
    with Run.open(out, command="phase recover", arguments={}, seed=0):
        assert "is in use by another lowdim process" in told(call("recover", recording, "-o", out, code=2))
    (tmp_path / "letter.txt").write_text("mine")
    assert "is not empty" in told(call("recover", recording, "-o", tmp_path, "--restart", code=2))
    assert (tmp_path / "letter.txt").read_text() == "mine"


@pytest.mark.parametrize("blow", [signal.SIGKILL, signal.SIGINT], ids=["killed", "interrupted"])
def test_a_run_that_was_stopped_goes_on_to_the_same_result(done, recording, tmp_path, blow):
    out = tmp_path / "out"
    words = ["recover", recording, "-o", out]
    # It waits between the choice of the ranks and the fit, where it is stopped.
    code = (
        # What runs in the background of a script inherits that interruptions are ignored.
        "import signal\nsignal.signal(signal.SIGINT, signal.default_int_handler)\n"
        "import sys, time\nfrom lowdim.phase import pipeline\n"
        "pipeline.Job.fit = lambda job: time.sleep(600)\n"
        "from lowdim.cli import main\nmain(sys.argv[1:])\n"
    )
    process = subprocess.Popen(
        [sys.executable, "-c", code, "phase", *map(str, words)],
        stderr=subprocess.PIPE,
        stdout=subprocess.DEVNULL,
        env={**os.environ},
        text=True,
    )
    kept = out / ".work" / "ranks.json"
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
    assert "done before" in call(*words, "--resume").stderr
    first, second = (json.loads((folder / "report.json").read_text()) for folder in (done[0], out))
    assert lasting(first) == lasting(second)
    assert (out / "frames.npy").read_bytes() == (done[0] / "frames.npy").read_bytes()
    (first, _), (second, _) = (read_tensors(f / "model/model.safetensors") for f in (done[0], out))
    assert all((first[name] == second[name]).all() for name in first)


@pytest.mark.parametrize(
    ("verb", "options"),
    [
        (
            "recover",
            ("--method", "--ranks", "--init", "--starts", "--max-iter", "--robust", "--real", "--seed"),
        ),
        ("recover", ("--output", "--max-unexplained", "--resume", "--restart", "--json")),
        ("simulate", ("--output", "--kind", "--measurements", "--noise", "--outliers", "--size", "--frames")),
        ("transition", ("--ranks", "--rank", "--method", "--grid", "--seeds", "--resume", "--restart")),
    ],
)
def test_help_tells_every_option(verb, options):
    said = call(verb, "--help").stdout
    for option in options:
        assert option in said
