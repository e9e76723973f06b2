"""What a run is watched for: each warning once, with a remedy, and the same after a checkpoint; its costs."""

import json
import warnings

import pytest
import torch
from torch import nn

from lowdim.errors import DataError, LowdimWarning
from lowdim.policy.diagnostics import group_shares
from lowdim.policy.guards import Guards
from lowdim.policy.ledger import CostLedger, flops_per_token


def feed(guards, rewards, *, count, truncated=0.0, log_weight=None):
    """Show the same batch several times; return what was said."""
    rewards = torch.tensor(rewards)
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always", LowdimWarning)
        for _ in range(count):
            guards.watch(rewards, group_shares(rewards, group=2), truncated=truncated, log_weight=log_weight)
    return [str(warning.message) for warning in said]


def test_equal_rewards_and_weak_models():
    assert feed(Guards(), [0.5] * 4, count=4) == []
    (said,) = feed(Guards(), [0.5] * 4, count=9)
    assert "all rewards of the first 5 batches are 0.5: there is nothing to learn from" in said
    (said,) = feed(Guards(), [0.0, 0.0, 1.0, 0.0], count=9)
    assert "50% of the prompts of the first 5 batches had no success" in said
    assert feed(Guards(), [0.0, 0.0, 1.0, 0.0, 1.0, 0.0], count=9) == []
    assert feed(Guards(weak=False, flat=False), [0.0] * 4, count=9) == []
    assert feed(Guards(silent=True), [0.0] * 4, count=9) == []


def test_rollouts_that_are_cut_off():
    (said,) = feed(Guards(), [0.0, 1.0], count=6, truncated=0.6)
    assert "60% of the rollouts were cut off" in said
    assert "Raise max_completion_length" in said
    assert feed(Guards(), [0.0, 1.0], count=6, truncated=0.5) == []


def test_policies_far_apart():
    far = torch.zeros(256)
    far[0] = 20.0
    guards = Guards()
    assert (
        feed(guards, [0.0, 1.0], count=20, log_weight=far) == []
    )  # one batch is too few to count, 19 follow
    (said,) = feed(guards, [0.0, 1.0], count=3, log_weight=far)
    assert "below 10% for 20 steps (0.4% of 1024 rows)" in said
    assert "Raise alpha" in said
    assert feed(Guards(), [0.0, 1.0], count=30, log_weight=torch.zeros(256)) == []
    assert feed(Guards(ratios=False), [0.0, 1.0], count=30, log_weight=far) == []


def test_a_falling_small_model():
    guards = Guards()
    assert feed(guards, [1.0, 0.5], count=6) == []
    assert feed(guards, [0.5, 0.25], count=4) == []
    (said,) = feed(guards, [0.5, 0.25], count=30)
    assert "fell from 0.750 to" in said
    assert "by more than a third" in said


def test_guards_go_on_after_a_checkpoint():
    far = torch.zeros(256)
    far[0] = 20.0
    one = Guards()
    feed(one, [1.0, 0.5], count=12, log_weight=far)
    other = Guards()
    other.load_state_dict(json.loads(json.dumps(one.state_dict())))
    assert feed(one, [0.2, 0.1], count=20, log_weight=far) == feed(
        other, [0.2, 0.1], count=20, log_weight=far
    )
    assert one.state_dict() == other.state_dict()
    fresh = Guards()
    fresh.load_state_dict(json.loads(json.dumps(Guards().state_dict())))
    assert fresh == Guards()


def test_an_evaluation_that_falls_by_a_third():
    assert [Guards().evaluated(value) for value in (0.6, 0.0)] == [False, False]  # each the first one
    guards = Guards()
    assert [guards.evaluated(value) for value in (0.6, 0.9, 0.41)] == [False, False, False]
    with pytest.warns(LowdimWarning, match="from 0.600 to 0.390, by more than a third: the run stops"):
        assert guards.evaluated(0.39)
    calm = Guards(stop=False)
    assert [calm.evaluated(value) for value in (0.6, 0.1)] == [False, False]


def test_costs_add_up():
    clock = iter([1.0, 3.0, 3.0, 3.5])
    ledger = CostLedger()
    ledger.now = lambda: next(clock)
    with ledger.phase("generate"):
        ledger.add("generate", tokens=30, completion_tokens=10, flops=600.0)
    with pytest.raises(KeyError), ledger.phase("score_large"):
        raise KeyError
    table = ledger.table()
    assert table["phase"].tolist() == ["generate", "score_large"]
    assert table["seconds"].tolist() == [2.0, 0.5]
    assert table["share"].tolist() == [0.8, 0.2]
    assert table["calls"].tolist() == [1, 1]
    assert ledger.generated_flops == 200.0
    other = CostLedger()
    other.load_state_dict(json.loads(json.dumps(ledger.state_dict())))
    assert other.table().equals(table)
    with pytest.raises(DataError, match=r"no phase 'sleep'. Phases are hint, generate"):
        ledger.add("sleep")
    assert CostLedger().table().empty


def test_work_of_a_token():
    model = nn.Sequential(nn.Linear(10, 10, bias=False), nn.Linear(10, 10, bias=False))
    assert flops_per_token(model) == 400
    assert flops_per_token(model, trained=True) == 1200
    model[0].requires_grad_(False)
    assert flops_per_token(model, trained=True) == 1000
