"""Kill, fill the disk, share the work out: the result is the one of an undisturbed run."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import faults
import pytest
import tiny
import torch
from safetensors.torch import load_file

SEED = 20261124


@pytest.fixture(scope="module")
def outcome(tmp_path_factory) -> tuple[Path, dict]:
    root = tmp_path_factory.mktemp("faults")
    tiny.write_bert(root / "model")
    tiny.write_texts(root)
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "COLUMNS": "400", "HF_HUB_OFFLINE": "1"}
    done = subprocess.run(
        [sys.executable, faults.__file__, str(root), str(SEED)],
        capture_output=True, text=True, env=environment, timeout=600, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert found["whole"] == 0, found["log"]
    return root, found


def assert_same(out: Path, whole: Path) -> None:
    """Weights and configuration to the bit, the report but for the times."""
    for name in ("config.json", "tokenizer.json"):
        assert (out / name).read_bytes() == (whole / name).read_bytes(), name
    # Not the bytes of the file: safetensors writes its header in a random order.
    first, second = (load_file(folder / "model.safetensors") for folder in (out, whole))
    assert first.keys() == second.keys()
    assert all(torch.equal(first[name], second[name]) for name in first)
    reports = [tiny.lasting(json.loads((folder / "report.json").read_text())) for folder in (out, whole)]
    assert reports[0] == reports[1]
    assert (out / "report.html").stat().st_size > 10_000
    assert not (out / ".work").exists()
    assert not [path for path in out.rglob("*") if path.name.endswith(".part")]


def test_killed_at_ten_random_moments_it_resumes_to_the_same_result(outcome):
    root, found = outcome
    assert len(found["kills"]) == faults.KILLS
    for number, kill in enumerate(found["kills"]):
        assert kill["resumed"] == 0, kill["log"]
        assert_same(root / f"killed{number}", root / "whole")
    # The moments must fall into the work, or nothing was tested.
    interrupted = [kill for kill in found["kills"] if kill["ended"] == -9]
    assert len(interrupted) >= 5
    assert any(".work/" in name for kill in interrupted for name in kill["left"])


def test_no_half_file_is_left_by_a_kill(outcome):
    _root, found = outcome
    for kill in found["kills"]:
        complete = "config.json" in kill["left"]
        assert not complete or "model.safetensors" in kill["left"]


def test_killed_after_ten_layers_it_does_not_compute_them_again(outcome):
    root, found = outcome
    run = found["tenth"]
    assert run["ended"] == -9
    assert len(run["killed"]) >= 10
    # The resumed run was stopped again (while it recovers), so that its files can be looked at.
    assert run["stopped"] == 2
    assert len(run["after"]) == 12
    assert {name: run["after"][name] for name in run["killed"]} == run["killed"]
    assert run["resumed"] == 0, run["log"]
    assert_same(root / "tenth", root / "whole")
    rows = json.loads((root / "tenth/report.json").read_text())["layers"]
    seconds = {f"{row['name']}.safetensors": row["seconds"] for row in rows}
    for name, (_, _, _, told) in run["after"].items():
        assert seconds[name] == told, "the time is that of the only computation"


@pytest.mark.parametrize("limit", faults.LIMITS)
def test_a_full_disk_is_told_and_leaves_no_half_file(outcome, limit):
    root, found = outcome
    entry = next(entry for entry in found["full"] if entry["limit"] == limit)
    assert entry["ended"] == 2, entry["told"]
    assert "could not be written" in entry["told"]
    assert "--resume" in entry["told"]
    assert "Traceback" not in entry["told"]
    assert "config.json" not in entry["left"]
    assert not [name for name in entry["left"] if name.endswith(".part") or name.startswith(".writing")]
    assert entry["resumed"] == 0
    assert_same(root / f"full{limit}", root / "whole")


def test_two_processes_under_torchrun_give_the_weights_of_one(outcome, tmp_path):
    root, _ = outcome
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    command += ["-m", "lowdim", *faults.words(root, tmp_path / "out")]
    done = subprocess.run(command, capture_output=True, text=True, env=environment, timeout=300, check=False)
    assert done.returncode == 0, done.stderr
    assert_same(tmp_path / "out", root / "whole")
    assert done.stdout.count("Summary") == 1
    failed = subprocess.run(
        [*command, "--keep", "0.4", "--resume"],
        capture_output=True, text=True, env=environment, timeout=300, check=False,
    )  # fmt: skip
    assert failed.returncode != 0
    assert "keep was 0.5 and is now 0.4" in " ".join(failed.stderr.split())
