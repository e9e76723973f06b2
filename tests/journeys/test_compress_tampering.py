"""Work files that were cut or edited while a run stood still: resuming names them, or they do not matter."""

from __future__ import annotations

import json
import re
import shutil
from functools import partial
from pathlib import Path

import pytest
import torch
from torch import nn

from lowdim.compress import CompressResult, compress
from lowdim.compress.timing import speed
from lowdim.errors import RunError

pytestmark = pytest.mark.filterwarnings("ignore::lowdim.errors.LowdimWarning")

LAYERS = ("0", "2")
BOTH = ("uniform", "error-curve")
# What lies in the work folder of a run that has all phases: when it is stopped in its recovery, and before it
# writes the model.
RECOVERING = [
    "moments/index.json",
    "moments/0.safetensors",
    "moments/2.safetensors",
    "sensitivities.json",
    *(f"layers-{kind}/{layer}.safetensors" for kind in BOTH for layer in LAYERS),
    *(f"quality-{kind}.json" for kind in BOTH),
    "recovery.safetensors",
]
WRITING = [*RECOVERING, "recovered.safetensors", "quality-recovered.json"]
UNUSED = {("write", "recovery.safetensors")}
"""Steps on the way to a recovery that has finished."""


class Stop(Exception):
    """Stands for a kill."""


def run(out: Path, *, stop: tuple[str, int] | None = None, **options) -> CompressResult:
    """Compress a small network with every phase there is; stop in a phase at a step."""
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(32, 48), nn.ReLU(), nn.Linear(48, 32))
    inputs = [torch.randn(100, 32) for _ in range(2)]

    def progress(phase: str, done: int, total: int, text: str) -> None:
        if (phase, done) == stop:
            raise Stop

    with pytest.MonkeyPatch.context() as patch:  # nobody reads the times here
        patch.setattr("lowdim.compress.stages.speed", partial(speed, repeats=1))
        return compress(
            net, calibration=inputs[:1], evaluation=inputs[1:], method="lowrank", allocation="error-curve",
            recover_steps=3, output=out, progress=progress, **options,
        )  # fmt: skip


@pytest.fixture(scope="module")
def stopped(tmp_path_factory) -> dict[str, Path]:
    """Runs that stopped at two places, and one that was not disturbed."""
    root = tmp_path_factory.mktemp("stopped")
    for phase, step in (("recover", 3), ("write", 0)):
        with pytest.raises(Stop):
            run(root / phase, stop=(phase, step))
    run(root / "whole")
    return {path.name: path for path in root.iterdir()}


@pytest.mark.parametrize(("phase", "expected"), [("recover", RECOVERING), ("write", WRITING)])
def test_the_table_of_work_files_is_complete(stopped, phase, expected):
    work = stopped[phase] / ".work"
    found = {str(path.relative_to(work)) for path in work.rglob("*") if path.is_file()}
    assert found == set(expected)


def truncate(content: bytes) -> bytes:
    return content[: len(content) // 2]


def empty(content: bytes) -> bytes:
    return b""


def flip(content: bytes) -> bytes:
    """Flip a bit: of a digit near the end of a JSON file (which stays JSON), of a byte of the tensors."""
    place = len(content) - 3
    if content.startswith(b"{"):
        # Not the last of 17 digits, which need not change the number.
        digits = re.findall(rb"\d+", content)[-1]
        place = content.rindex(digits) + min(2, len(digits) - 1)
    return content[:place] + bytes([content[place] ^ 1]) + content[place + 1 :]


def edit(content: bytes) -> bytes:
    """Change a fact in the middle, as an editor would: a number of JSON, a word of a safetensors header."""
    if content.startswith(b"{"):
        value = re.search(rb'"value"[^\d]*(\d)', content)
        assert value is not None
        place = value.start(1)
        return content[:place] + (b"8" if content[place : place + 1] != b"8" else b"7") + content[place + 1 :]
    return content.replace(b"F32", b"I32", 1) if b"F32" in content else content.replace(b"F64", b"I64", 1)


CASES = [(phase, name) for phase, names in (("recover", RECOVERING), ("write", WRITING)) for name in names]


@pytest.mark.parametrize("damage", [truncate, empty, flip, edit])
@pytest.mark.parametrize(("phase", "name"), CASES)
def test_a_damaged_work_file_is_refused_by_name_or_not_used(stopped, tmp_path, phase, name, damage):
    out = tmp_path / "out"
    shutil.copytree(stopped[phase], out)
    path = out / ".work" / name
    content = path.read_bytes()
    assert damage(content) != content
    path.write_bytes(damage(content))
    if (phase, name) in UNUSED:
        assert_same(run(out, resume=True), stopped["whole"])
        return
    with pytest.raises(RunError) as caught:
        run(out, resume=True)
    told = str(caught.value)
    assert str(path) in told
    assert re.search(r"truncated or damaged|was changed after it was written", told)
    assert re.search(r"Delete (this file|the folder .*moments) and run again with --resume.*--restart", told)


@pytest.mark.parametrize(("phase", "name"), CASES)
def test_the_remedy_helps(stopped, tmp_path, phase, name):
    out = tmp_path / "out"
    shutil.copytree(stopped[phase], out)
    path = out / ".work" / name
    if name.startswith("moments/") and name.endswith(".safetensors"):
        shutil.rmtree(path.parent)
    else:
        path.unlink()
    assert_same(run(out, resume=True), stopped["whole"])


@pytest.mark.parametrize(
    ("content", "told"),
    [
        ("", "report.json is truncated or damaged"),
        ("[]", "report.json has format None; this lowdim reads 1"),
        ('{"format": 2}', "report.json has format 2; this lowdim reads 1"),
        ('{"format": 1, "layers": []}', r"report.json was changed.*KeyError: 'left_alone'"),
        ('{"format": 1, "layers": [{"name": "0", "shape": 3}]}', r"report.json was changed.*TypeError"),
    ],
)
def test_a_damaged_report_of_a_finished_run_is_refused_by_name(stopped, tmp_path, content, told):
    out = tmp_path / "out"
    shutil.copytree(stopped["whole"], out)
    (out / "report.json").write_text(content)
    with pytest.raises(RunError, match=f"(?s){told}.*--restart"):
        run(out, resume=True)


def assert_same(result: CompressResult, whole: Path) -> None:
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(32, 48), nn.ReLU(), nn.Linear(48, 32))
    expected = CompressResult.load(whole, model=net)
    first, second = result.model.state_dict(), expected.model.state_dict()
    assert first.keys() == second.keys()
    assert all(torch.equal(first[key], second[key]) for key in first)
    assert json.dumps(result.report["quality"]) == json.dumps(expected.report["quality"])
    assert result.report["allocations"] == expected.report["allocations"]
