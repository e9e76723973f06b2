"""`lowdim incontext` as a user runs it."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pandas as pd
import pytest
import torch
from typer.testing import CliRunner

import lowdim.cli
from lowdim.incontext import StudyResult
from lowdim.runs import read_tensors

pytestmark = pytest.mark.filterwarnings("ignore")

TIMED = ("seconds", "created", "command", "output")
SMALL = ("-d", 4, "-r", 1, "-n", 6, "--angles", "0,90", "--prompts", 20)
TINY = ("gpt2", *SMALL, "--steps", 40, "--batch", 8, "--layers", 1, "--heads", 1, "--width", 8)


def call(*words: object, code: int = 0):
    """Run a command line in this process; return its outcome."""
    result = CliRunner().invoke(lowdim.cli.build(), ["incontext", *map(str, words)])
    assert result.exit_code == code, result.output
    return result


def told(result) -> str:
    """The text of a panel, without its frame and line breaks."""
    return " ".join(result.stderr.translate(str.maketrans("", "", "│╭╮╰╯─")).split())


def lasting(report: dict) -> dict:
    return {key: value for key, value in report.items() if key not in TIMED}


@pytest.fixture(scope="module")
def done(tmp_path_factory) -> tuple[Path, str]:
    out = tmp_path_factory.mktemp("done") / "out"
    result = call("run", *TINY, "--ranks", "1,2", "--adapt-steps", 5, "-o", out)
    return out, result.stdout


def test_it_writes_tables_weights_report_and_page(done):
    out, shown = done
    assert {path.name for path in out.iterdir()} == {
        *("risks.csv", "adapters.csv", "weights.safetensors", "report.json", "report.html"),
        *("manifest.json", ".lock"),
    }
    report = json.loads((out / "report.json").read_text())
    assert len(pd.read_csv(out / "risks.csv")) == len(report["risks"]) == 2 * 4
    text = " ".join(shown.split())
    assert report["sentence"] in text
    assert "Degrees Model Zero Ridge Oracle" in text
    assert "The same after an adapter for 45 degrees" in text
    assert "Report:" in text
    assert report["command"].startswith("lowdim ")
    assert StudyResult.load(out).model().sizes["n_embd"] == 8


def test_linear_attention_stands_beside_theory_without_output(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    result = call("run", "optimal", *SMALL, "--noise", 0.1)
    text = " ".join(result.stdout.split())
    assert "Degrees Model Theory Zero Ridge Oracle" in text
    assert "add -o OUT" in text
    assert list(tmp_path.iterdir()) == []


def test_json_is_the_report_and_nothing_else(tmp_path):
    result = call("run", "optimal", *SMALL, "-o", tmp_path / "out", "--json")
    assert json.loads(result.stdout) == json.loads((tmp_path / "out" / "report.json").read_text())
    assert "measure" in result.stderr


def test_every_option_counts():
    def report(*words: object, model: str = "optimal") -> dict:
        given = [*SMALL, *words] if model == "optimal" else list(TINY[1:]) + list(words)
        return json.loads(call("run", model, *given, "--json").stdout)

    plain = report()
    for words in (
        ("--noise", 0.5),
        ("--subspaces", 2),
        ("--toward", "anywhere", "--subspaces", 2),
        ("-n", 9),
        ("--angles", "0,45"),
        ("--contexts", "3,6"),
        ("--prompts", 30),
        ("--baseline", "least squares"),
        ("--seed", 4),
        ("--seeds", 2),
    ):
        assert report(*words)["risks"] != plain["risks"], words
    adapted = report("--ranks", "0,1", "--adapt-steps", 5)
    assert [row["rank"] for row in adapted["adapters"]] == [0, 0, 1, 1]
    assert report("--ranks", 1, "--adapt-angle", 90, "--adapt-steps", 5)["adapters"][0]["angle_deg"] == 90
    trained = report(model="gpt2")
    for words in (
        ("--family", "relu"),
        ("--steps", 20),
        ("--batch", 4),
        ("--lr", 1e-4),
        ("--layers", 2),
        ("--heads", 2),
        ("--width", 16),
        ("--tokens", "alternating"),
    ):
        assert report(*words, model="gpt2")["losses"] != trained["losses"], words


@pytest.mark.parametrize(
    ("words", "text"),
    [
        (("optimal", "-d", 3, "-r", 2), "needs 2 r <= d, got r=2 and d=3"),
        (("optimal", "--angles", "0,91"), "must lie in [0, 90] degrees"),
        (("optimal", "--angles", "steep"), "--angles steep: expected numbers such as 0,45,90"),
        (("optimal", "--ranks", "1,x"), "--ranks 1,x: expected whole numbers such as 1,2,4"),
        (("optimal", "--contexts", "5.5"), "--contexts 5.5: expected whole numbers"),
        (("optimal", "--ranks", "21"), "rank 21 of an adapter must be an integer from 0 to 20"),
        (("optimal", "--noise", "-1"), "noise=-1.0 must be a standard deviation >= 0"),
        (("optimal", "--family", "relu"), "model='optimal' is for linear functions"),
        (("optimal", "-n", "0"), "n=0 must be an integer >= 1"),
        (("optimal", "--seeds", "0"), "seeds=0 must be an integer >= 1"),
        (("gpt2", "-d", 4, "-r", 1, "-n", 5, "--contexts", "6"), "exceeds n_positions=6"),
        (("gpt2", "--width", "30"), "n_embd=30 is not divisible by n_head=4"),
        (("optimal", "--resume", "--restart"), "Give only one"),
        (("optimal", "--device", "toaster"), "device='toaster' cannot be used"),
        (("magic",), "Invalid value for 'MODEL'"),
    ],
)
def test_bad_input_is_one_panel_and_leaves_nothing(tmp_path, words, text):
    out = tmp_path / "out"
    assert text in told(call("run", *words, "-o", out, code=2))
    assert not out.exists()


def test_it_is_not_repeated_but_can_be_resumed_or_restarted(done):
    out, _ = done
    words = ["run", *TINY, "--ranks", "1,2", "--adapt-steps", 5, "-o", out]
    assert "already holds a finished run" in told(call(*words, code=2))
    assert "lr was 0.002 and is now 0.5" in told(call(*words, "--lr", 0.5, "--resume", code=2))
    before = (out / "risks.csv").stat().st_mtime_ns
    report = lasting(json.loads((out / "report.json").read_text()))
    shown = call(*words, "--resume").stdout
    assert (out / "risks.csv").stat().st_mtime_ns == before
    assert report["sentence"] in " ".join(shown.split())
    call(*words, "--restart")
    assert (out / "risks.csv").stat().st_mtime_ns > before
    assert lasting(json.loads((out / "report.json").read_text())) == report


@pytest.mark.parametrize("blow", [signal.SIGKILL, signal.SIGINT], ids=["killed", "interrupted"])
def test_a_run_that_was_stopped_goes_on_to_the_same_result(done, tmp_path, blow):
    out = tmp_path / "out"
    words = ["run", *TINY, "--ranks", "1,2", "--adapt-steps", 5, "-o", out]
    # It waits in the middle of its training, after a state was kept.
    code = (
        # What runs in the background of a script inherits that interruptions are ignored.
        "import signal\nsignal.signal(signal.SIGINT, signal.default_int_handler)\n"
        "import functools, sys, time\nfrom lowdim.incontext import pipeline, train\n"
        "pipeline.train = functools.partial(train, save_every=20)\n"
        "from lowdim.incontext.train import _Job\nsave = _Job.save\n"
        "_Job.save = lambda job, *given: (save(job, *given), time.sleep(600))\n"
        "from lowdim.cli import main\nmain(sys.argv[1:])\n"
    )
    process = subprocess.Popen(
        [sys.executable, "-c", code, "incontext", *map(str, words)],
        stderr=subprocess.PIPE,
        stdout=subprocess.DEVNULL,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        text=True,
    )
    kept = out / ".work" / "train-0" / "state.safetensors"
    deadline = time.monotonic() + 240
    while not kept.exists() and process.poll() is None and time.monotonic() < deadline:
        time.sleep(0.05)
    assert kept.exists(), process.communicate(timeout=5)
    refused = told(call(*words, "--resume", code=2))
    assert f"is in use by another lowdim process (process id {process.pid})" in refused
    process.send_signal(blow)
    _, said = process.communicate(timeout=60)
    if blow is signal.SIGINT:
        assert process.returncode == 130
        assert "--resume" in said
    assert not (out / "report.json").exists()
    assert "already holds an unfinished run" in told(call(*words, code=2))
    call(*words, "--resume")
    first, second = (json.loads((folder / "report.json").read_text()) for folder in (done[0], out))
    assert lasting(first) == lasting(second)
    for name in ("risks.csv", "adapters.csv"):
        assert (out / name).read_bytes() == (done[0] / name).read_bytes(), name
    (first, _), (second, _) = (read_tensors(f / "weights.safetensors") for f in (done[0], out))
    assert all(torch.equal(first[name], second[name]) for name in first)


def test_several_runs_are_drawn_on_one_page(done, tmp_path):
    other = tmp_path / "other"
    call("run", "optimal", *SMALL, "-o", other)
    page = tmp_path / "both.html"
    result = call("plot", done[0], other, "-o", page)
    text = " ".join(result.stdout.split())
    assert "out: The transformer" in text
    assert "other: The best linear attention" in text
    assert "How it was made" in page.read_text()
    shown = json.loads(call("plot", other, "-o", page, "--json").stdout)
    assert list(shown["runs"]) == ["other"]


def test_what_cannot_be_plotted(tmp_path):
    assert "holds no report.json" in told(call("plot", tmp_path, "-o", tmp_path / "a.html", code=2))
    there_is_none = call("plot", tmp_path, "-o", tmp_path / "none" / "a.html", code=2)
    assert "there is no folder" in told(there_is_none)


@pytest.mark.parametrize("verb", ["run", "plot"])
def test_help_tells_every_option(verb):
    shown = call(verb, "--help").stdout
    options = ["--output", "--json"]
    if verb == "run":
        options += ["--subspaces", "--noise", "--family", "--angles", "--toward", "--contexts", "--prompts"]
        options += ["--baseline", "--ranks", "--adapt-angle", "--adapt-steps", "--steps", "--batch", "--lr"]
        options += ["--layers", "--heads", "--width", "--tokens", "--seed", "--seeds", "--device", "--resume"]
        options += ["--restart", "-d", "-r", "-n"]
    for option in options:
        assert option in shown
