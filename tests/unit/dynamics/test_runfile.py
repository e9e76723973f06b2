"""The record of a watched training: read whole, read while it grows, refused where it is none."""

import json
import math

import pandas as pd
import pytest

from lowdim.dynamics.runfile import DynamicsRun, RunFile, read_run
from lowdim.errors import DataError

HEADER = {"lowdim": "dynamics", "format": 1, "every": 100, "optimizer": "SGD", "lr": 0.2, "probes": ["rank"]}


def report(step, time=None, **metrics):
    named = {f"dyn/{name}": value for name, value in metrics.items()}
    return {"step": step, "time": step / 100 if time is None else time, "metrics": named}


@pytest.fixture
def path(tmp_path):
    return tmp_path / "run.jsonl"


def write(path, *lines, end="\n"):
    text = [line if isinstance(line, str) else json.dumps(line) for line in lines]
    with path.open("a", encoding="utf-8") as file:
        file.write("\n".join(text) + end)
    return path


def test_reports_become_a_table_by_step(path):
    write(
        path, HEADER, report(100, loss=2.0), report(200, loss=1.0, sharpness=None), report(300, sharpness=9)
    )
    run = read_run(path)
    assert run.name == "run.jsonl"
    assert run.header == HEADER
    assert run.table.index.tolist() == [100, 200, 300]
    assert run.table.columns.tolist() == ["time", "dyn/loss", "dyn/sharpness"]
    assert run.table["time"].tolist() == [1.0, 2.0, 3.0]
    assert run.series("dyn/loss").to_dict() == {100: 2.0, 200: 1.0}
    assert run.series("dyn/sharpness").to_dict() == {300: 9.0}
    assert run.series("dyn/none").empty
    assert run.torn == 0


def test_a_family_has_one_column_per_layer(path):
    values = {
        "dyn/erank/a.weight": 3.0,
        "dyn/erank/b/c": 4.0,
        "dyn/erank_grad/a.weight": 5.0,
        "dyn/erank/x": None,
    }
    write(path, HEADER, {"step": 1, "time": 0.1, "metrics": values})
    family = read_run(path).family("dyn/erank")
    assert family.to_dict("list") == {"a.weight": [3.0], "b/c": [4.0]}
    assert read_run(path).family("dyn/drift_deg").empty


def test_what_json_calls_no_number_is_missing(path):
    write(path, HEADER, '{"step": 5, "time": NaN, "metrics": {"dyn/loss": Infinity, "dyn/edge": true}}')
    write(path, '{"step": 6, "time": 1, "metrics": {"dyn/loss": 1' + "0" * 400 + "}}")
    run = read_run(path)
    assert run.series("dyn/loss").empty
    assert run.series("dyn/edge").to_dict() == {5: 1.0}
    assert math.isnan(run.table["time"].iloc[0])
    assert run.lost
    write(path, {"step": 7, "time": 2, "metrics": {"dyn/edge": 0}})
    assert not read_run(path).lost


def test_a_header_alone_is_a_run_without_reports(path):
    run = read_run(write(path, HEADER))
    assert run.table.empty
    assert run.series("dyn/loss").empty
    assert run.family("dyn/erank").empty


@pytest.mark.parametrize("cut", [1, 10, 30, 50])
def test_half_a_last_line_is_not_read(path, cut):
    write(path, HEADER, report(100, loss=2.0))
    write(path, json.dumps(report(200, loss=1.0))[:cut], end="")
    assert read_run(path).table.index.tolist() == [100]


def test_a_last_line_that_is_whole_needs_no_line_break(path):
    write(path, HEADER, report(100, loss=2.0), report(200, loss=1.0), end="")
    assert read_run(path).table.index.tolist() == [100, 200]


def test_a_resumed_run_replaces_what_it_trains_again_and_its_time_goes_on(path):
    write(path, HEADER, *(report(step, loss=1.0) for step in (100, 200, 300, 400)))
    write(path, {**HEADER, "lr": 0.1}, report(300, time=0.5, loss=3.0), report(400, time=1.5, loss=4.0))
    run = read_run(path)
    assert run.table.index.tolist() == [100, 200, 300, 400]
    assert run.table["dyn/loss"].tolist() == [1.0, 1.0, 3.0, 4.0]
    assert run.table["time"].tolist() == [1.0, 2.0, 4.5, 5.5]
    assert [header["lr"] for header in run.headers] == [0.2, 0.1]
    assert run.header["lr"] == 0.1


@pytest.mark.parametrize("join", ["", "\n"], ids=["in the same line", "in a line of its own"])
def test_a_line_torn_by_a_crash_is_forgiven_before_the_header_of_the_next_process(path, join):
    write(path, HEADER, report(100, loss=2.0))
    write(path, json.dumps(report(200))[:20], end=join)
    write(path, HEADER, report(200, loss=1.0))
    run = read_run(path)
    assert run.table.index.tolist() == [100, 200]
    assert run.torn == 1
    assert len(run.headers) == 2


def test_a_growing_file_gives_what_the_whole_one_gives(path):
    file_lines = [
        HEADER,
        *(report(step, loss=1 / step) for step in range(1, 30)),
        HEADER,
        report(20, loss=0.5),
    ]
    text = "".join(json.dumps(line) + "\n" for line in file_lines).encode()
    path.touch()
    file = RunFile(path)
    assert not file.read()
    grew = 0
    for start in range(0, len(text), 37):
        with path.open("ab") as out:
            out.write(text[start : start + 37])
        grew += file.read()
    assert 20 < grew <= 40
    assert not file.read()
    whole = read_run(path)
    pd.testing.assert_frame_equal(file.run().table, whole.table)
    assert file.run().headers == whole.headers


def test_a_file_that_is_written_anew_is_read_anew(path):
    write(path, HEADER, report(100), report(200))
    file = RunFile(path)
    file.read()
    path.unlink()
    write(path, {**HEADER, "lr": 0.5}, report(100))
    assert file.read()
    assert file.run().table.index.tolist() == [100]
    assert [header["lr"] for header in file.run().headers] == [0.5]
    path.unlink()
    with pytest.raises(DataError, match="has gone while it was watched"):
        file.read()


def test_an_empty_file_is_awaited_or_told(path):
    path.touch()
    assert RunFile(path).run().headers == ()
    with pytest.raises(DataError, match=r"run\.jsonl is empty so far.*Wait"):
        read_run(path)


def test_what_is_not_there_or_is_a_folder(tmp_path):
    with pytest.raises(DataError, match=r"there is no such file.*appears when the training begins"):
        read_run(tmp_path / "none.jsonl")
    with pytest.raises(DataError, match="is a folder, expected a file"):
        read_run(tmp_path)


@pytest.mark.parametrize(
    ("lines", "told"),
    [
        (["step,loss", "1,2"], "no text with one JSON object per line"),
        (["{", '"a": 1', "}"], "line 1 holds no JSON object"),
        (['{"loss": 1}'], "line 1 has other fields, expected the header"),
        (['{"lowdim": "track", "format": 1}'], "line 1 has lowdim = 'track'"),
        ([{**HEADER, "format": 2}], "has format 2; this lowdim reads 1"),
        ([{**HEADER, "lr": "high"}], "line 1 has lr = 'high', expected a number"),
        ([{**HEADER, "label": 3}], "line 1 has label = 3, expected text"),
        ([{**HEADER, "probes": "rank"}], "line 1 has probes = 'rank', expected a list"),
        ([HEADER, '{"step": 1.5, "metrics": {}}'], "line 2 has step = 1.5, expected a whole number"),
        ([HEADER, '{"step": true, "metrics": {}}'], "line 2 has step = True"),
        ([HEADER, '{"step": -1, "metrics": {}}'], "line 2 has step = -1"),
        ([HEADER, '{"step": 9300000000000000000, "metrics": {}}'], "line 2 has step = 9300000000000000000"),
        ([HEADER, "", '{"step": 1, "metrics": []}'], "line 3 has metrics = \\[\\], expected an object"),
        ([HEADER, '{"step": 1, "time": "now", "metrics": {}}'], "line 2 has time = 'now', expected seconds"),
        ([HEADER, report(1, loss="low")], "line 2 has dyn/loss = 'low', expected a number or null"),
        ([HEADER, "epoch 1", report(1)], "line 2 holds no JSON object, expected a report"),
    ],
)
def test_other_files_are_refused_by_line_with_a_remedy(path, lines, told):
    with pytest.raises(DataError, match=rf"run\.jsonl.*{told}.*(Give the JSONL file|Use the lowdim)"):
        read_run(write(path, *lines))


def test_large_binary_files_are_refused_by_their_beginning(path):
    path.write_bytes(b"{" + b"x" * (1 << 21))
    with pytest.raises(DataError, match="no text with one JSON object"):
        read_run(path)
    path.write_bytes(b"\xff\xfe\x00")
    with pytest.raises(DataError, match="no text with one JSON object"):
        read_run(path)


def test_a_run_is_a_value():
    run = DynamicsRun("a", (), pd.DataFrame())
    with pytest.raises(AttributeError):
        run.name = "b"
    assert run.header == {}
