"""The trainer of two policies: resuming, padding, hints, adapters, baselines, what it writes down."""

import importlib.util
import json
from pathlib import Path

import pytest
import torch

pytest.importorskip("trl")

from lowdim.errors import Diverged  # noqa: E402

spec = importlib.util.spec_from_file_location("tiny", Path(__file__).with_name("tiny.py"))
tiny = importlib.util.module_from_spec(spec)
spec.loader.exec_module(tiny)

pytestmark = pytest.mark.filterwarnings(
    "ignore::FutureWarning", "ignore::lowdim.errors.LowdimWarning", "ignore::UserWarning"
)


@pytest.mark.parametrize(
    "changes",
    [
        {"hint_tokens": 2, "hint_ratio": "small", "lr_scheduler_type": "cosine"},
        {"hint_tokens": 2, "hint_ratio": "large", "num_iterations": 2, "save_steps": 3},
    ],
)
def test_a_resumed_run_is_the_uninterrupted_one(tmp_path, changes):
    saved = {"save_strategy": "steps", "save_steps": 3, "hint_epochs": 0.2} | changes
    whole = tiny.trainer(tmp_path / "whole", **saved)
    whole.train()
    assert whole.state.log_history[0]["hybrid/ess_rows"] == 28
    resumed = tiny.trainer(tmp_path / "resumed", **saved)
    resumed.train(resume_from_checkpoint=str(tmp_path / "whole" / "checkpoint-3"))
    assert tiny.distance(whole.model, resumed.model) == 0.0
    assert tiny.distance(whole.large, resumed.large) == 0.0
    counted = [t.ledger.table().drop(columns=["seconds", "share"]) for t in (whole, resumed)]
    assert counted[0].equals(counted[1])
    assert whole.guards.state_dict() == resumed.guards.state_dict()
