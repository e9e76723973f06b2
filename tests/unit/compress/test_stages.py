"""The phases of a compression: what they tell, and what they fall back to when a step made things worse."""

from __future__ import annotations

import json

import pytest
import torch
from torch import nn

from lowdim.algebra import StructuredLinear
from lowdim.compress import CompressResult, compress, stages
from lowdim.errors import LowdimWarning

OPTIONS = {"keep": 0.5, "method": "lowrank", "sweeps": 2}


class Beside(nn.Module):
    """Two layers that see the same input: the first has 8 large directions, the second is full."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.few, self.full = nn.Linear(64, 64), nn.Linear(64, 64)
        with torch.no_grad():
            self.few.weight.copy_(torch.randn(64, 8) @ torch.randn(8, 64) / 8 + 0.01 * torch.randn(64, 64))

    def forward(self, x):
        return torch.cat([self.few(x), self.full(x)], -1)


def rows() -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(1)
    return [torch.randn(200, 64, generator=generator) for _ in range(2)]


def same(first: nn.Module, second: nn.Module) -> bool:
    a, b = first.state_dict(), second.state_dict()
    return a.keys() == b.keys() and all(torch.equal(a[key], b[key]) for key in a)


def ranks(model: nn.Module) -> set[int]:
    return {module.operator.rank for module in model.modules() if isinstance(module, StructuredLinear)}


@pytest.mark.parametrize("shared", [0.3, 0.2, None], ids=["worse", "equal", "unknown"])
def test_the_uniform_allocation_stays_unless_the_other_is_better(monkeypatch, tmp_path, shared):
    def measured(original, student, *args, **kwargs):
        # The uniform plan gives both layers the same rank, the other one does not.
        return {"task": "generic", "relative_error": 0.2 if len(ranks(student)) == 1 else shared}

    uniform = compress(Beside(), calibration=rows(), **OPTIONS)
    monkeypatch.setattr(stages, "evaluate", measured)
    out = tmp_path / "out"
    result = compress(Beside(), calibration=rows(), allocation="error-curve", output=out, **OPTIONS)
    assert same(result.model, uniform.model)
    assert same(CompressResult.load(out, model=Beside()).model, uniform.model)
    assert result.plan.layers == uniform.plan.layers
    report = json.loads((out / "report.json").read_text())
    assert report["allocation"] == report["allocations"]["chosen"] == "uniform"
    assert report["allocations"]["uniform"]["relative_error"] == 0.2
    assert report["allocations"]["error-curve"]["relative_error"] == shared
    assert report["quality"]["relative_error"] == 0.2
    assert [row["rank"] for row in report["layers"]] == [layer.rank for layer in uniform.plan.layers]
    assert any("error-curve allocation was not better" in note for note in report["notes"])


def test_the_better_allocation_is_kept(monkeypatch):
    def measured(original, student, *args, **kwargs):
        return {"task": "generic", "relative_error": 0.2 if len(ranks(student)) == 1 else 0.1}

    monkeypatch.setattr(stages, "evaluate", measured)
    result = compress(Beside(), calibration=rows(), allocation="error-curve", **OPTIONS)
    assert len(ranks(result.model)) == 2
    assert result.report["allocation"] == result.report["allocations"]["chosen"] == "error-curve"
    assert not any("was not better" in note for note in result.report["notes"])


@pytest.mark.parametrize("worse", [True, False])
def test_recovery_is_undone_when_it_made_the_model_worse(monkeypatch, tmp_path, worse):
    before = compress(Beside(), calibration=rows(), **OPTIONS).model

    def measured(original, student, *args, **kwargs):
        changed = 0.3 if worse else 0.1
        return {"task": "generic", "relative_error": 0.2 if same(student, before) else changed}

    monkeypatch.setattr(stages, "evaluate", measured)
    options = {"calibration": rows(), "recover_steps": 3, "output": tmp_path, **OPTIONS}
    if worse:
        with pytest.warns(LowdimWarning, match="3 steps of recovery made the model worse"):
            result = compress(Beside(), **options)
    else:
        result = compress(Beside(), **options)
    assert same(result.model, before) == worse
    assert same(CompressResult.load(tmp_path, model=Beside()).model, result.model)
    report = json.loads((tmp_path / "report.json").read_text())
    assert report["recovery"]["kept"] is not worse
    assert report["recovery"]["steps"] == 3
    assert report["recovery"]["quality"]["relative_error"] == (0.3 if worse else 0.1)
    assert report["quality"]["relative_error"] == (0.2 if worse else 0.1)
    assert report["quality"]["before_recovery"]["relative_error"] == 0.2
    assert any("the weights before it were kept" in note for note in report["notes"]) == worse


def test_the_plan_tells_where_it_starts_and_ends():
    heard = []
    compress(Beside(), calibration=rows(), progress=lambda *entry: heard.append(entry), **OPTIONS)
    plan = [(done, total) for phase, done, total, _ in heard if phase == "plan"]
    assert plan == [(1, 3), (2, 3), (3, 3)]
    assert [phase for phase, *_ in heard].index("calibrate") == len(plan)
