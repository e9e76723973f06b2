from __future__ import annotations

import json
import multiprocessing
import resource
import warnings
from contextlib import suppress

import pytest
import torch

from lowdim.errors import LowdimWarning, RunError
from lowdim.runs import Run, atomic_json, atomic_tensors, atomic_write, digest, read_json, read_tensors

OPTIONS = {"command": "compress", "arguments": {"keep": 0.5, "blocks": [4, 4]}, "seed": 0}


def test_a_run_leaves_a_manifest_and_no_work_files(tmp_path):
    out = tmp_path / "deep" / "out"
    with Run.open(out, **OPTIONS, inputs={"text": "ab"}) as run:
        assert read_json(out / "manifest.json")["status"] == "running"
        atomic_write(run.work / "layer", b"x")
    manifest = read_json(out / "manifest.json")
    assert manifest["status"] == "finished"
    assert manifest["arguments"] == OPTIONS["arguments"]
    assert manifest["start"] <= manifest["end"]
    assert manifest["inputs"] == {"text": "ab"}
    assert "torch" in manifest["versions"]
    assert not run.work.exists()


def stopped(out, *, model=None, **inputs):
    """Leave a run that failed after its first layer."""
    with suppress(ZeroDivisionError), Run.open(out, **OPTIONS, inputs=inputs) as run:
        if model is not None:
            run.pin("model", model)
        atomic_write(run.work / "layer", "done")
        raise ZeroDivisionError


def test_a_stopped_run_resumes_with_its_files(tmp_path):
    stopped(tmp_path)
    assert read_json(tmp_path / "manifest.json")["status"] == "failed"
    with Run.open(tmp_path, **OPTIONS, resume=True) as run:
        assert (run.work / "layer").read_text() == "done"
        assert not run.finished


def test_a_stopped_run_is_not_taken_over_silently(tmp_path):
    stopped(tmp_path)
    with (
        pytest.raises(RunError, match=r"unfinished run of `lowdim compress`.*--resume.*--restart"),
        Run.open(tmp_path, **OPTIONS),
    ):
        pass
    with Run.open(tmp_path, **OPTIONS, restart=True) as run:
        assert not (run.work / "layer").exists()


def test_a_finished_run_is_not_repeated(tmp_path):
    with Run.open(tmp_path, **OPTIONS):
        atomic_write(tmp_path / "model", "x")
    with pytest.raises(RunError, match="a finished run"), Run.open(tmp_path, **OPTIONS):
        pass
    with Run.open(tmp_path, **OPTIONS, resume=True) as run:
        assert run.finished


def test_other_settings_are_named(tmp_path):
    stopped(tmp_path)
    other = {**OPTIONS, "arguments": {"keep": 0.3, "blocks": [4, 4]}, "seed": 1}
    with (
        pytest.raises(RunError, match=r"seed was 0 and is now 1; keep was 0.5 and is now 0.3"),
        Run.open(tmp_path, **other, resume=True),
    ):
        pass


def test_changed_inputs_are_named(tmp_path):
    stopped(tmp_path, model="1", text="ab")
    with (
        pytest.raises(RunError, match="the input text has changed"),
        Run.open(tmp_path, **OPTIONS, inputs={"text": "cd"}, resume=True),
    ):
        pass
    with (
        pytest.raises(RunError, match="begun with another model"),
        Run.open(tmp_path, **OPTIONS, inputs={"text": "ab"}, resume=True) as run,
    ):
        run.pin("model", "2")


def test_foreign_files_are_not_written_over(tmp_path):
    (tmp_path / "thesis.tex").write_text("years of work")
    for restart in (False, True):
        with (
            pytest.raises(RunError, match=r"not empty \(it holds thesis.tex\)"),
            Run.open(tmp_path, **OPTIONS, restart=restart),
        ):
            pass
    assert (tmp_path / "thesis.tex").read_text() == "years of work"
    assert [p.name for p in tmp_path.iterdir()] == ["thesis.tex", ".lock"] or not (
        tmp_path / ".work"
    ).exists()


def test_a_run_that_fails_at_the_door_leaves_nothing(tmp_path):
    out = tmp_path / "out"
    with pytest.raises(ZeroDivisionError), Run.open(out, **OPTIONS):
        raise ZeroDivisionError
    assert not out.exists()


def _hold(out, ready, leave):
    with Run.open(out, **OPTIONS) as run:
        atomic_write(run.work / "layer", "x")
        ready.set()
        leave.wait(30)


def test_a_second_process_is_refused_and_a_killed_one_leaves_no_lock(tmp_path):
    context = multiprocessing.get_context("fork")
    ready, leave = context.Event(), context.Event()
    process = context.Process(target=_hold, args=(tmp_path, ready, leave))
    process.start()
    assert ready.wait(30)
    with (
        pytest.raises(RunError, match=rf"in use by another lowdim process \(process id {process.pid}\)"),
        Run.open(tmp_path, **OPTIONS, resume=True),
    ):
        pass
    process.kill()
    process.join()
    with Run.open(tmp_path, **OPTIONS, resume=True) as run:
        assert (run.work / "layer").read_text() == "x"


def test_other_versions_are_told(tmp_path):
    stopped(tmp_path)
    manifest = read_json(tmp_path / "manifest.json")
    manifest["versions"]["torch"] = "1.0"
    atomic_json(tmp_path / "manifest.json", manifest)
    with pytest.warns(LowdimWarning, match=r"torch 1.0 ->"), Run.open(tmp_path, **OPTIONS, resume=True):
        pass


def test_unknown_formats_are_refused(tmp_path):
    stopped(tmp_path)
    manifest = {**read_json(tmp_path / "manifest.json"), "format": 99}
    atomic_json(tmp_path / "manifest.json", manifest)
    with pytest.raises(RunError, match="has format 99"), Run.open(tmp_path, **OPTIONS, resume=True):
        pass


@pytest.mark.parametrize("content", ["", "{", '{"format": 1, "argu', "[]", "[" * 100_000, "\udcff"])
def test_a_damaged_manifest_is_named(tmp_path, content):
    stopped(tmp_path)
    (tmp_path / "manifest.json").write_text(content, errors="surrogateescape")
    with (
        pytest.raises(RunError, match=r"manifest.json is truncated or damaged.*--restart"),
        Run.open(tmp_path, **OPTIONS, resume=True),
    ):
        pass


def test_a_full_disk_leaves_the_old_file_and_no_half_one(tmp_path):
    path = tmp_path / "layer"
    atomic_write(path, b"old")
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1000, limits[1]))
    try:
        with pytest.raises(
            RunError, match=r"layer \(0.0 MB\) could not be written: File too large.*are free"
        ):
            atomic_write(path, b"x" * 5000)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert path.read_bytes() == b"old"
    assert [p.name for p in tmp_path.iterdir()] == ["layer"]


def test_part_files_of_a_killed_process_are_swept(tmp_path):
    stopped(tmp_path)
    (tmp_path / ".work" / ".layer.1234.part").write_text("half")
    with Run.open(tmp_path, **OPTIONS, resume=True) as run:
        assert [p.name for p in run.work.iterdir()] == ["layer"]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64, torch.int64])
def test_tensors_come_back_as_they_were(tmp_path, dtype):
    torch.manual_seed(0)
    tensors = {"a": (10 * torch.randn(3, 4)).to(dtype).t(), "b": torch.tensor(3, dtype=dtype)}
    tensors["c"] = tensors["a"][0]  # shares memory
    atomic_tensors(tmp_path / "t", tensors, {"key": "ä"})
    back, facts = read_tensors(tmp_path / "t")
    assert facts == {"key": "ä"}
    assert all(torch.equal(back[name], tensors[name]) for name in tensors)


def test_truncated_and_changed_tensors_are_refused_by_name(tmp_path):
    path = tmp_path / "layer.safetensors"
    atomic_tensors(path, {"U": torch.randn(8, 8)}, {"key": "1"})
    whole = path.read_bytes()
    for size in (0, 5, 100, len(whole) - 1):
        path.write_bytes(whole[:size])
        with pytest.raises(RunError, match=r"layer.safetensors is truncated or damaged"):
            read_tensors(path)
    for position in (len(whole) - 1, whole.index(b'"key":"1"') + 7):
        changed = bytearray(whole)
        changed[position] ^= 1
        path.write_bytes(bytes(changed))
        with pytest.raises(RunError, match=r"layer.safetensors was changed"):
            read_tensors(path)


@pytest.mark.parametrize("resume", [False, True])
def test_work_files_of_unknown_settings_are_not_used(tmp_path, resume):
    stopped(tmp_path)
    (tmp_path / "manifest.json").unlink()
    with (
        pytest.raises(RunError, match=r"manifest.json that tells their settings is gone.*--restart"),
        Run.open(tmp_path, **OPTIONS, resume=resume),
    ):
        pass
    assert (tmp_path / ".work" / "layer").exists()
    with Run.open(tmp_path, **OPTIONS, restart=True) as run:
        assert not (run.work / "layer").exists()


def test_any_flipped_bit_of_tensors_is_refused_by_name(tmp_path):
    path = tmp_path / "layer.safetensors"
    torch.manual_seed(0)
    atomic_tensors(path, {"U": torch.randn(2, 3), "b": torch.randn(2)}, {"key": "1"})
    whole = path.read_bytes()
    for position in range(len(whole)):
        changed = bytearray(whole)
        changed[position] ^= 1 << position % 8
        path.write_bytes(bytes(changed))
        with pytest.raises(RunError, match=r"layer.safetensors (is truncated or damaged|was changed)"):
            read_tensors(path)


VALUE = {"cosine": 0.91, "top1": None, "notes": ["ä", 3], "nested": {"10": 1e-7, "2": True}}


def stopped_with_json(out):
    with suppress(ZeroDivisionError), Run.open(out, **OPTIONS) as run:
        (run.work / "deep").mkdir()
        atomic_json(run.work / "deep" / "quality.json", {**VALUE, "nested": {10: 1e-7, 2: True}})
        raise ZeroDivisionError
    return out / ".work" / "deep" / "quality.json"


def test_json_work_files_carry_a_checksum_and_others_stay_plain(tmp_path):
    path = stopped_with_json(tmp_path)
    assert read_json(path) == VALUE
    raw = json.loads(path.read_text(encoding="utf-8"))
    assert raw == {"sha256": digest(VALUE), "value": VALUE}
    assert json.loads((tmp_path / "manifest.json").read_text())["status"] == "failed"
    atomic_json(tmp_path / "report.json", VALUE)
    assert json.loads((tmp_path / "report.json").read_text(encoding="utf-8")) == VALUE


def test_a_folder_called_work_without_a_run_holds_plain_json(tmp_path):
    (tmp_path / ".work").mkdir()
    atomic_json(tmp_path / ".work" / "shared.json", VALUE)
    assert json.loads((tmp_path / ".work" / "shared.json").read_text(encoding="utf-8")) == VALUE
    # Nor does a run that lies in the work folder of another one.
    stopped_with_json(tmp_path / "outer")
    inner = tmp_path / "outer" / ".work" / "inner"
    stopped(inner)
    atomic_json(inner / "report.json", VALUE)
    assert read_json(inner / "report.json") == VALUE
    assert json.loads((inner / "report.json").read_text(encoding="utf-8")) == VALUE


def test_truncated_and_changed_json_work_files_are_refused_by_name(tmp_path):
    path = stopped_with_json(tmp_path)
    whole = path.read_bytes()
    told = r"quality.json is truncated or damaged.*Delete this file and run again with --resume.*--restart"
    for size in range(len(whole.rstrip())):
        path.write_bytes(whole[:size])
        with pytest.raises(RunError, match=told):
            read_json(path)
    changed = r"quality.json was changed after it was written.*Delete this file.*--resume.*--restart"
    edits = {b"0.91": b"0.92", b"1e-07": b"2e-07", b"null": b"1", b'"top1"': b'"top2"', b"true": b"1"}
    for old, new in edits.items():
        assert whole.count(old) == 1
        path.write_bytes(whole.replace(old, new))
        with pytest.raises(RunError, match=changed):
            read_json(path)
    for foreign in (VALUE, VALUE["notes"], {"value": VALUE}, {"sha256": digest(VALUE)}):
        path.write_text(json.dumps(foreign))
        with pytest.raises(RunError, match=changed):
            read_json(path)
    path.unlink()
    with pytest.raises(RunError, match=r"quality.json cannot be read: No such file"):
        read_json(path)


def test_no_flipped_bit_of_a_json_work_file_gives_another_value(tmp_path):
    path = stopped_with_json(tmp_path)
    whole = path.read_bytes()
    refused = 0
    for position in range(len(whole)):
        changed = bytearray(whole)
        changed[position] ^= 1 << position % 8
        path.write_bytes(bytes(changed))
        try:
            found = read_json(path)
        except RunError:
            refused += 1
        else:
            assert found == VALUE, position  # such as "e" and "E" in a number
    assert refused > 0.9 * len(whole)


def test_digests_tell_dtype_shape_and_order():
    a = torch.arange(6.0)
    parts = [
        digest(a),
        digest(a.double()),
        digest(a.reshape(2, 3)),
        digest(a, "x"),
        digest("x", a),
        digest(-a),
    ]
    assert len(set(parts)) == len(parts)
    assert digest(a.reshape(2, 3).t().contiguous().t()) == digest(a.reshape(2, 3))


def test_json_is_readable_and_strict(tmp_path):
    atomic_json(tmp_path / "a.json", {"ä": 1})
    assert json.loads((tmp_path / "a.json").read_text(encoding="utf-8")) == {"ä": 1}
    with pytest.raises(ValueError, match="not JSON compliant"):
        atomic_json(tmp_path / "b.json", {"x": float("nan")})
    with pytest.raises(RunError, match=r"b.json cannot be read"):
        read_json(tmp_path / "b.json")


def test_no_warning_when_nothing_changed(tmp_path):
    stopped(tmp_path)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        with Run.open(tmp_path, **OPTIONS, resume=True):
            pass
