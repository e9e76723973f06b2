"""Where reports go: whole lines, no NaN, resumed files, and a clear word on what is no sink."""

import json
import math

import pytest

from lowdim.dynamics.runfile import read_run
from lowdim.dynamics.sinks import JsonLines, Memory, RunLog, as_sinks
from lowdim.dynamics.tensorboard import TensorBoard
from lowdim.errors import DataError

HEADER = {"every": 10, "optimizer": "SGD", "lr": 0.1, "label": "sharpness", "threshold_rule": "2 / lr"}


def lines(path):
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_each_line_is_there_at_once(tmp_path):
    path = tmp_path / "new" / "run.jsonl"
    sink = JsonLines(path)
    assert not path.exists()  # nothing is written before training begins
    sink.open(HEADER)
    assert lines(path) == [{"lowdim": "dynamics", "format": 1, **HEADER}]
    sink(10, {"dyn/loss": 0.5, "dyn/period": math.nan, "dyn/lr": math.inf})
    assert lines(path)[1]["metrics"] == {"dyn/loss": 0.5, "dyn/period": None, "dyn/lr": None}
    assert lines(path)[1]["step"] == 10
    assert 0 <= lines(path)[1]["time"] < 60


def test_a_resumed_file_is_appended_to_even_if_torn(tmp_path):
    path = tmp_path / "run.jsonl"
    for step in (10, 20):
        sink = JsonLines(path)
        sink.open(HEADER)
        sink(step, {"dyn/loss": 1 / step})
        sink.close()
        with path.open("a") as file:
            file.write('{"step": 3')
    run = read_run(path)
    assert len(run.headers) == 2
    assert run.table["dyn/loss"].to_dict() == {10: 0.1, 20: 0.05}


def test_another_file_is_not_touched(tmp_path):
    path = tmp_path / "notes.txt"
    path.write_text("mine\n")
    with pytest.raises(DataError, match="is no record"):
        JsonLines(path)
    with pytest.raises(DataError, match="folder"):
        JsonLines(tmp_path)
    assert path.read_text() == "mine\n"


def test_memory_gives_a_table():
    memory = Memory()
    memory(1, {"a": 1.0})
    memory(2, {"a": 2.0, "b": 3.0})
    table = memory.table()
    assert table["a"].to_list() == [1.0, 2.0]
    assert math.isnan(table.loc[1, "b"])
    assert memory.series("b") == [3.0]


def test_sinks_are_recognized(tmp_path):
    class Run:
        def __init__(self):
            self.logged = []

        def log(self, values, step=None):
            self.logged.append((step, values))

    class Writer:
        def __init__(self):
            self.logged = []

        def add_scalar(self, name, value, step):
            self.logged.append((name, value, step))

    run, writer, memory = Run(), Writer(), Memory()
    sinks = as_sinks([run, [writer, memory], str(tmp_path / "a.jsonl"), print])
    assert [type(sink) for sink in sinks] == [RunLog, TensorBoard, Memory, JsonLines, type(print)]
    for sink in sinks[:3]:
        sink(5, {"x": 1.0, "y": math.nan})
    assert run.logged[0][0] == 5
    assert writer.logged == [("x", 1.0, 5)]
    with pytest.raises(DataError, match="sink is a int"):
        as_sinks(3)
    with pytest.raises(DataError, match="Memory"):
        as_sinks([])


def test_tensorboard_writes_events(tmp_path):
    accumulator = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    sink = TensorBoard(tmp_path)
    for step in (1, 2):
        sink(step, {"dyn/loss": float(step)})
    sink.close()
    events = accumulator.EventAccumulator(str(tmp_path))
    events.Reload()
    assert [(e.step, e.value) for e in events.Scalars("dyn/loss")] == [(1, 1.0), (2, 2.0)]
