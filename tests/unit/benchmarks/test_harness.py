"""The benchmark harness: interleaving, ratios, tables, skipping."""

import json
import sys
import time
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parents[3]))

from benchmarks import __main__ as command
from benchmarks import harness, peers
from benchmarks.harness import Options, Row, Skipped, Table, Timing, interleave, ratio


def test_repetitions_are_interleaved_in_alternating_order(monkeypatch):
    monkeypatch.setattr(harness, "SAMPLE_SECONDS", 0.0)
    order = []
    timings = interleave({name: lambda name=name: order.append(name) for name in "ab"}, repeats=3)
    assert "".join(order[4:]) == "ab" + "ba" + "ab"  # the first four calls warm up
    assert all(len(timing.seconds) == 3 for timing in timings.values())


def test_the_ratio_tells_which_is_faster():
    timings = interleave({"fast": lambda: time.sleep(0.001), "slow": lambda: time.sleep(0.004)}, repeats=3)
    gain = ratio(timings["fast"], other=timings["slow"])
    assert 2 < gain.median < 6
    assert gain.low <= gain.median <= gain.high


def test_ratios_pair_the_repetitions():
    # The machine became twice as slow in the second half: the paired ratio does not notice.
    gain = ratio(Timing((1.0, 1.0, 2.0, 2.0)), other=Timing((3.0, 3.0, 6.0, 6.0)))
    assert (gain.low, gain.median, gain.high) == (3.0, 3.0, 3.0)
    assert str(gain) == "3.00 (3.00-3.00)"
    assert ratio(Timing((2.0,)), other=Timing((1.0,))).median == 0.5


def fake(run):
    class Module:
        DESCRIPTION = "Nothing against nothing."

    Module.run = staticmethod(run)
    return Module


@pytest.fixture
def benchmark(monkeypatch):
    def install(run):
        monkeypatch.setattr(command, "NAMES", ("fake",))
        monkeypatch.setitem(sys.modules, "benchmarks.fake", fake(run))

    return install


def test_the_command_writes_both_files_and_judges(benchmark, tmp_path, capsys):
    rows = (Row("one", {"ratio": "2.0"}, {"ratio": 2.0}, met=True), Row("two", {"ratio": None}))
    benchmark(lambda options: Table("fake", "Nothing against nothing.", rows, ("A note.",)))
    assert command.main(["fake", "--output", str(tmp_path)]) == 0
    stored = json.loads((tmp_path / "fake.json").read_text())
    assert stored["met"] is True
    assert stored["machine"]["cores"] >= 1
    assert stored["rows"][0]["figures"] == {"ratio": 2.0}
    page = (tmp_path / "fake.md").read_text()
    assert "| one | 2.0 | met |" in page
    assert "| two | - | - |" in page
    assert page in capsys.readouterr().out


def test_a_missed_threshold_fails_the_command(benchmark, tmp_path):
    benchmark(lambda options: Table("fake", "", (Row("one", {"ratio": "0.5"}, met=False),)))
    assert command.main(["--output", str(tmp_path)]) == 1
    assert "**short**" in (tmp_path / "fake.md").read_text()


def test_a_benchmark_that_cannot_run_says_why(benchmark, tmp_path):
    def run(options):
        raise Skipped("no CUDA GPU in reach")

    benchmark(run)
    assert command.main(["--quick", "--output", str(tmp_path)]) == 0
    assert "Skipped: no CUDA GPU in reach." in (tmp_path / "fake.md").read_text()
    assert "Quick run" in (tmp_path / "fake.md").read_text()


def test_an_unknown_benchmark_is_refused(capsys):
    with pytest.raises(SystemExit, match="2"):
        command.main(["speed_of_light"])
    assert "speed_of_light" in capsys.readouterr().err


def test_quick_takes_fewer_repetitions():
    assert [Options(quick=quick).repeats(9) for quick in (False, True)] == [9, 3]
    assert Options(quick=True).repeats(4) == 3


def test_a_peer_is_skipped_with_the_reason(monkeypatch, tmp_path):
    monkeypatch.delenv("LOWDIM_PEER_BLAST", raising=False)
    with pytest.raises(Skipped, match="LOWDIM_PEER_BLAST does not name"):
        peers.official_blast("ops.blast_ops")
    monkeypatch.setenv("LOWDIM_PEER_BLAST", str(tmp_path))
    with pytest.raises(Skipped, match="has no ops/blast_ops"):
        peers.official_blast("ops.blast_ops")


def test_every_benchmark_has_a_name_a_description_and_a_run():
    import importlib

    for name in command.NAMES:
        module = importlib.import_module(f"benchmarks.{name}")
        assert name == module.NAME
        assert module.DESCRIPTION
        assert callable(module.run)
