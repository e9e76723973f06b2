"""`lowdim dynamics` as a user runs it: a run is watched while it is written, and a demo is trained."""

from __future__ import annotations

import json
import os
import select
import signal
import struct
import subprocess
import sys
import time
from pathlib import Path

import pytest
from typer.testing import CliRunner

import lowdim.cli
from lowdim.dynamics.runfile import read_run
from lowdim.runs import Run, atomic_json

pytestmark = pytest.mark.filterwarnings("ignore")

HEADER = {
    **{"lowdim": "dynamics", "format": 1, "every": 100, "optimizer": "SGD", "lr": 0.2, "label": "sharpness"},
    **{
        "threshold_rule": "2 / lr",
        "parameters": 8970,
        "probes": ["sharpness"],
        "started": "2026-11-28T08:40",
    },
}
TIMED = ("created", "command", "output")


def call(*words: object, code: int = 0):
    """Run a command line in this process; return its outcome."""
    result = CliRunner().invoke(lowdim.cli.build(), ["dynamics", *map(str, words)])
    assert result.exit_code == code, result.output
    return result


def told(result) -> str:
    """The text of a panel, without its frame and line breaks."""
    return " ".join(result.stderr.translate(str.maketrans("", "", "│╭╮╰╯─")).split())


def line(step: int, ratio: float) -> str:
    """A report of a training whose sharpness rises to the edge."""
    swing = -0.95 if ratio < 1 else 0.95
    metrics = {
        **{"dyn/loss": 1 / step, "dyn/sharpness": 10 * ratio, "dyn/sharpness_ratio": ratio},
        **{"dyn/threshold": 10.0, "dyn/alternation": swing, "dyn/erank/fc.weight": 9.0, "dyn/seconds": 0.01},
    }
    return json.dumps({"step": step, "time": step / 100, "metrics": metrics})


LINES = [json.dumps(HEADER), *(line(100 * i, min(0.15 * i, 1.02)) for i in range(1, 21))]


@pytest.fixture
def run(tmp_path) -> Path:
    path = tmp_path / "run.jsonl"
    path.write_text("\n".join(LINES) + "\n")
    return path


def test_a_run_is_shown_once_in_a_pipe_and_nothing_is_written(run, tmp_path):
    shown = call("watch", run).stdout
    assert "At the edge: successive steps undo each other (alternation +0.95)" in " ".join(shown.split())
    assert "first passes its threshold (2 / lr = 10) between steps 600 and 700" in " ".join(shown.split())
    assert "add -o OUT" in shown
    assert call("watch", run, "--once").stdout == shown
    assert [path.name for path in tmp_path.iterdir()] == ["run.jsonl"]


def test_the_report_is_written_and_may_be_written_again(run, tmp_path):
    out = tmp_path / "new" / "out"
    shown = call("watch", run, "-o", out).stdout
    assert str(out / "report.html") in shown.replace("\n", "")
    assert sorted(path.name for path in out.iterdir()) == ["report.html", "report.json"]
    report = json.loads((out / "report.json").read_text())
    assert report["state"]["name"] == "oscillating"
    assert report["crossing"] == [600, 700]
    assert report["output"] == str(out)
    assert report["findings"][0]["sentence"] in (out / "report.html").read_text()
    with run.open("a") as file:
        file.write(line(2100, 0.5) + "\n")
    call("watch", run, "-o", out)
    assert json.loads((out / "report.json").read_text())["state"]["name"] == "below"


def test_json_is_the_report_and_nothing_else(run, tmp_path):
    result = call("watch", run, "--json", "-o", tmp_path / "out")
    report = json.loads(result.stdout)
    assert report == json.loads((tmp_path / "out" / "report.json").read_text())
    assert {finding["topic"] for finding in report["findings"]} >= {"Loss", "Sharpness", "Oscillation"}


def test_half_a_last_line_and_a_run_without_reports(run):
    with run.open("a") as file:
        file.write('{"step": 2100, "me')
    assert json.loads(call("watch", run, "--json").stdout)["reports"] == 20
    run.write_text(LINES[0] + "\n")
    assert "No report yet." in call("watch", run).stdout


@pytest.mark.parametrize(
    ("content", "words", "text"),
    [
        (None, (), "there is no such file"),
        ("", (), "run.jsonl is empty so far"),
        ("step,loss\n1,2\n", (), "run.jsonl is no text with one JSON object per line. Give the JSONL file"),
        ('{"lowdim": "dynamics", "format": 7}\n', (), "has format 7; this lowdim reads 1"),
        (LINES[0] + '\n{"step": "x"}\n', (), "line 2 has step = 'x', expected a whole number"),
        (LINES[0] + "\n", ("--refresh", "0"), "--refresh 0: expected seconds above zero"),
        (LINES[0] + "\n", ("--idle", "-1"), "--idle -1: expected seconds above zero"),
    ],
)
def test_bad_input_is_one_panel_and_leaves_nothing(tmp_path, content, words, text):
    path = tmp_path / "run.jsonl"
    if content is not None:
        path.write_text(content)
    assert text in told(call("watch", path, "-o", tmp_path / "out", *words, code=2))
    assert not (tmp_path / "out").exists()


def test_a_folder_with_another_report_is_safe(run, tmp_path):
    atomic_json(tmp_path / "report.json", {"model": "geodesic"})
    assert "none of `lowdim dynamics`" in told(call("watch", run, "-o", tmp_path, code=2))
    assert json.loads((tmp_path / "report.json").read_text()) == {"model": "geodesic"}
    assert "is a file, expected a folder" in told(call("watch", run, "-o", run, code=2))


class Clock:
    """A clock in the place of the real one: with every look the file grows, until it no longer does."""

    def __init__(self, path: Path, lines: list[str]) -> None:
        self.path, self.lines, self.now, self.looks = path, list(lines), 0.0, 0

    def sleep(self, seconds: float) -> None:
        self.now += seconds
        self.looks += 1
        if self.lines:
            with self.path.open("a") as file:
                file.write(self.lines.pop(0) + "\n")

    def monotonic(self) -> float:
        return self.now


def test_with_idle_a_pipe_waits_until_the_file_no_longer_grows(tmp_path, monkeypatch):
    path = tmp_path / "run.jsonl"
    path.touch()
    clock = Clock(path, LINES)
    monkeypatch.setattr("lowdim.cli.dynamics.time", clock)
    report = json.loads(call("watch", path, "--idle", 5, "--refresh", 2, "--json").stdout)
    assert report["reports"] == 20
    assert clock.looks == len(LINES) + 3  # and three looks of two seconds without anything new
    path.write_text("")
    assert "was empty to the end" in told(call("watch", path, "--idle", 1, code=2))


def drain(terminal: int, until: str, seconds: float = 60) -> str:
    """Read what a program writes to its terminal until a text appears."""
    said, end = b"", time.monotonic() + seconds
    while until.encode() not in said and time.monotonic() < end:
        if select.select([terminal], [], [], 0.1)[0]:
            try:
                said += os.read(terminal, 1 << 16)
            except OSError:  # the program has ended
                break
    assert until.encode() in said, said.decode(errors="replace")
    return said.decode()


def test_a_terminal_follows_the_file_until_ctrl_c(tmp_path):
    pty = pytest.importorskip("pty", reason="no pseudo-terminals on this system")
    fcntl, termios = pytest.importorskip("fcntl"), pytest.importorskip("termios")
    path, out = tmp_path / "run.jsonl", tmp_path / "out"
    path.write_text("\n".join(LINES[:4]) + "\n")
    ours, theirs = pty.openpty()
    fcntl.ioctl(ours, termios.TIOCSWINSZ, struct.pack("HHHH", 24, 80, 0, 0))
    # What runs in the background of a script inherits that interruptions are ignored.
    code = (
        "import signal\nsignal.signal(signal.SIGINT, signal.default_int_handler)\n"
        "import sys\nfrom lowdim.cli import main\nmain(sys.argv[1:])\n"
    )
    words = ["dynamics", "watch", str(path), "--refresh", "0.05", "-o", str(out)]
    process = subprocess.Popen(
        [sys.executable, "-c", code, *words],
        stdin=theirs,
        stdout=theirs,
        stderr=theirs,
        env={**os.environ, "OMP_NUM_THREADS": "1", "TERM": "xterm", "NO_COLOR": "1", "COLUMNS": "80"},
    )
    os.close(theirs)
    try:
        drain(ours, "Below the edge: the sharpness is 0.45")
        with path.open("a") as file:
            file.write("\n".join(LINES[4:]) + "\n")
        drain(ours, "At the edge: successive steps undo each other")
        assert not out.exists()
        process.send_signal(signal.SIGINT)
        said = drain(ours, "report.html")
        assert "first passes its threshold" in said
        assert process.wait(timeout=60) == 0
    finally:
        process.kill()
        os.close(ours)
    assert json.loads((out / "report.json").read_text())["reports"] == 20


@pytest.fixture(scope="module")
def done(tmp_path_factory) -> tuple[Path, str]:
    """A demo with few images, which passes the edge."""
    out = tmp_path_factory.mktemp("demo") / "out"
    result = call("demo", "--samples", 20, "--steps", 300, "-o", out)
    return out, result.stdout


def test_the_demo_writes_its_run_and_its_report(done):
    out, shown = done
    assert {path.name for path in out.iterdir()} == {
        *("run.jsonl", "report.json", "report.html", "manifest.json", ".lock")
    }
    run = read_run(out / "run.jsonl")
    assert run.table.index.tolist() == list(range(25, 301, 25))
    assert run.header["parameters"] == 8970
    report = json.loads((out / "report.json").read_text())
    assert report["reports"] == 12
    assert "sharpness first passes its threshold (2 / lr = 10)" in " ".join(shown.split())


def test_the_demo_rises_past_the_edge_and_its_steps_flip_there(done):
    run = read_run(done[0] / "run.jsonl")
    ratio, swing = run.series("dyn/sharpness_ratio"), run.series("dyn/alternation")
    # Twenty images pass the edge at step 150 and overshoot.
    assert ratio.loc[125] < 1 < ratio.loc[175]
    assert 1.1 < ratio.max() < 1.35
    assert swing.loc[100] < -0.9
    assert swing.iloc[-1] > 0.5
    assert run.series("dyn/loss").iloc[-1] < run.series("dyn/loss").iloc[0]


def test_the_demo_can_be_watched_afterwards(done):
    first = json.loads((done[0] / "report.json").read_text())
    second = json.loads(call("watch", done[0] / "run.jsonl", "--json").stdout)
    same = [key for key in first if key not in TIMED]
    assert {key: first[key] for key in same} == {key: second[key] for key in same}


def test_the_demo_is_the_same_each_time_but_for_its_times():
    words = ("demo", "--samples", 5, "--steps", 50, "--json")
    tables = [json.loads(call(*words).stdout)["series"] for _ in range(2)]
    assert tables[0]["sharpness"] == tables[1]["sharpness"]
    other = json.loads(call(*words, "--seed", 1).stdout)["series"]
    assert other["sharpness"] != tables[0]["sharpness"]
    assert json.loads(call(*words, "--lr", 0.1).stdout)["last"]["threshold"]["value"] == pytest.approx(20)


def test_a_demo_that_diverges_says_so():
    shown = call("demo", "--samples", 5, "--steps", 200, "--lr", 50).stdout
    assert "step 25 |" in shown  # it ends with the first report
    assert "Diverged: the loss is not finite any more in the first report." in shown


@pytest.mark.parametrize(
    ("words", "text"),
    [
        (("--samples", 0), "samples=0 images, expected 1 to 1797"),
        (("--samples", 1798), "samples=1798 images"),
        (("--lr", 0), "lr=0.0 is no learning rate"),
        (("--lr", "nan"), "lr=nan is no learning rate"),
        (("--steps", 24), "steps=24 end before the first report"),
        (("--resume", "--restart"), "Give only one"),
    ],
)
def test_bad_options_of_the_demo(tmp_path, words, text):
    out = tmp_path / "out"
    assert text in told(call("demo", "-o", out, *words, code=2))
    assert not out.exists()


def test_a_demo_is_not_repeated_but_can_be_shown_again_or_restarted(done, tmp_path):
    out, shown = done
    words = ("demo", "--samples", 20, "--steps", 300, "-o", out)
    assert "already holds a finished run" in told(call(*words, code=2))
    before = (out / "run.jsonl").stat().st_mtime_ns
    assert call(*words, "--resume").stdout == shown
    assert (out / "run.jsonl").stat().st_mtime_ns == before
    assert "lr was 0.2 and is now 0.1" in told(call(*words, "--lr", 0.1, "--resume", code=2))
    assert "need the output folder" in told(call("demo", "--resume", code=2))
    small = ("demo", "--samples", 2, "--steps", 25, "-o", tmp_path / "small")
    call(*small)
    first = (tmp_path / "small" / "run.jsonl").stat().st_mtime_ns
    call(*small, "--restart")
    assert (tmp_path / "small" / "run.jsonl").stat().st_mtime_ns > first


def test_folders_in_use_and_of_others_are_safe(tmp_path):
    with Run.open(tmp_path / "out", command="x", arguments={}, seed=0):
        assert "is in use by another lowdim process" in told(call("demo", "-o", tmp_path / "out", code=2))
    (tmp_path / "letter.txt").write_text("mine")
    assert "is not empty" in told(call("demo", "-o", tmp_path, "--restart", code=2))


def test_an_interrupted_demo_leaves_nothing(tmp_path):
    out, scratch = tmp_path / "out", tmp_path / "scratch"
    scratch.mkdir()
    code = (
        "import signal\nsignal.signal(signal.SIGINT, signal.default_int_handler)\n"
        "import sys\nfrom lowdim.cli import main\nmain(sys.argv[1:])\n"
    )
    process = subprocess.Popen(
        [sys.executable, "-c", code, "dynamics", "demo", "--steps", "1000000", "-o", str(out)],
        stderr=subprocess.PIPE,
        stdout=subprocess.DEVNULL,
        env={**os.environ, "OMP_NUM_THREADS": "1", "TMPDIR": str(scratch)},
        text=True,
    )
    try:
        end = time.monotonic() + 120
        while not list(scratch.glob("*/run.jsonl")) and process.poll() is None and time.monotonic() < end:
            time.sleep(0.05)
        assert list(scratch.glob("*/run.jsonl"))
        process.send_signal(signal.SIGINT)
        _, said = process.communicate(timeout=60)
    finally:
        process.kill()
    assert process.returncode == 130
    assert "Interrupted" in said
    assert not out.exists()
    assert not list(scratch.glob("*/run.jsonl"))
