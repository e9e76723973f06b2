"""Which prompts get all their rollouts, and when staging pauses."""

import json

import pytest
import torch

from lowdim.errors import DataError, ShapeError
from lowdim.policy import group_advantages
from lowdim.policy.forgetting import ForgettingGuard
from lowdim.policy.stages import Decision, StagedRollouts, audit_groups, expected_rollouts, solved

NAN = torch.nan


def stages(**changes):
    return StagedRollouts(**{"first": 2, "group": 4, "audit": 0.0} | changes)


def test_only_groups_without_a_fault_stop():
    rewards = torch.tensor([[1.0, 1.0], [0.0, 0.0], [1.0, 0.0], [NAN, 1.0], [NAN, NAN]])
    assert solved(rewards).tolist() == [True, False, False, False, False]
    decision = stages().decide(rewards, keys=range(5))
    assert decision.expand.tolist() == [False, True, True, True, True]
    assert decision.made(first=2, group=4).sum(-1).tolist() == [2, 4, 4, 4, 4]


def test_the_reward_of_a_right_answer_can_be_another():
    rewards = torch.tensor([[2.0, 2.0], [1.0, 1.0]])
    assert stages(maximum=2.0).decide(rewards, keys=[0, 1]).expand.tolist() == [False, True]
    with pytest.raises(DataError, match="reward of 2 is above 1"):
        stages().decide(rewards, keys=[0, 1])


def test_expected_rollouts_are_the_mean_of_the_decisions():
    source = torch.Generator().manual_seed(0)
    for p in (0.2, 0.7, 0.95):
        rewards = (torch.rand(20_000, 2, generator=source) < p).float()
        made = stages().decide(rewards, keys=range(20_000)).made(first=2, group=4)
        expected = float(expected_rollouts(torch.tensor(p), first=2, group=4))
        assert float(made.sum(-1).float().mean()) == pytest.approx(expected, abs=0.03)


def test_unmade_rollouts_have_no_advantage_and_no_say():
    rewards = torch.tensor([1.0, 1.0, NAN, NAN, 1.0, 0.0, 0.0, 0.0])
    assert group_advantages(rewards, group=4).tolist() == [0, 0, 0, 0, 0.75, -0.25, -0.25, -0.25]


def test_audits_have_their_share_and_depend_on_seed_and_cycle_alone():
    drawn = torch.stack([audit_groups(50, share=0.2, seed=3, cycle=c) for c in range(200)])
    assert float(drawn.float().mean()) == pytest.approx(0.2, abs=0.02)
    assert float(drawn.float().mean(0).std()) < 0.05  # no place is preferred
    assert torch.equal(drawn[7], audit_groups(50, share=0.2, seed=3, cycle=7))
    assert not torch.equal(drawn[7], drawn[8])
    assert not torch.equal(drawn[7], audit_groups(50, share=0.2, seed=4, cycle=7))
    decision = stages(audit=1.0).decide(torch.ones(4, 2), keys=range(4))
    assert decision.expand.all()
    assert decision.audited.all()


def test_all_processes_go_on_with_equally_many():
    rewards = torch.tensor([[1.0, 1.0]] * 3 + [[0.0, 1.0]] * 2 + [[1.0, 1.0]])  # three solved, then one
    decision = stages().decide(rewards, keys=range(6), processes=2)
    assert decision.expand.view(2, 3).sum(-1).tolist() == [2, 2]
    assert decision.expand.tolist() == [True, True, False, True, True, False]
    assert decision.audited.tolist() == [True, True, False, False, False, False]
    with pytest.raises(ShapeError, match="5 prompts in 2 processes"):
        stages().decide(rewards[:5], keys=range(5), processes=2)


def test_figures_of_a_cycle():
    expand, right, audited = torch.tensor([[0, 1, 1], [1, 1, 0], [0, 1, 0]]).bool()
    decision = Decision(expand, right, audited)
    whole = torch.tensor([[1.0, 1.0, NAN, NAN], [1.0, 1.0, 0.0, 1.0], [0.0, 1.0, 0.0, 0.0]])
    found = stages().statistics(decision, whole)
    assert found["stopped"] == pytest.approx(1 / 3)
    assert found["made"] == pytest.approx(10 / 12)
    assert found["audit_reward"] == 0.75
    assert found["audit_failures"] == 0.5
    assert found["active"] == 1.0


@pytest.mark.parametrize(
    ("changes", "said"),
    [({"first": 4}, "Give 1 to 3"), ({"first": 0}, "Give 1 to 3"), ({"audit": 1.5}, "no share")],
)
def test_refusals(changes, said):
    with pytest.raises(DataError, match=said):
        stages(**changes)


def play(guard, source, *, cycles, fall=0.0):
    """Visits of 16 of 512 prompts; returns the cycles with an alarm."""
    levels = torch.rand(512, generator=torch.Generator().manual_seed(9)) ** 0.3 * (1 - fall)
    alarms = []
    for cycle in range(cycles):
        keys = torch.randint(512, (16,), generator=source)
        right = torch.rand(16, 4, generator=source) < levels[keys][:, None]
        if guard.observe(keys.tolist(), right.float().mean(-1), right.all(-1)):
            alarms.append(cycle)
    return alarms


def test_the_guard_sees_forgetting_and_little_else():
    false, delays = 0, []
    for seed in range(5):
        guard, source = ForgettingGuard(cooldown=5), torch.Generator().manual_seed(seed)
        false += len(play(guard, source, cycles=200))
        delays += play(guard, source, cycles=60, fall=0.2)[:1]
    assert false <= 1
    assert len(delays) == 5
    assert max(delays) <= 20


def test_staging_pauses_and_comes_back():
    staged = stages(guard=ForgettingGuard(window=4, cooldown=2))
    right, wrong = torch.ones(4, 2), torch.zeros(4, 2)
    for rewards in (right, right):
        assert not staged.decide(rewards, keys=range(4)).expand.any()
    staged.decide(wrong, keys=range(4))
    assert not staged.active
    assert staged.guard.alarms == 1
    # Two cycles with all rollouts, whatever the first ones show; then staged again.
    assert staged.decide(right, keys=range(4)).expand.all()
    assert staged.decide(right, keys=range(4)).expand.all()
    assert not staged.decide(right, keys=range(4)).expand.any()


def test_a_state_through_json_goes_on_alike():
    source = torch.Generator().manual_seed(0)
    visits = [(torch.rand(8, 2, generator=source) < 0.8).float() for _ in range(40)]
    first = stages(audit=0.3, guard=ForgettingGuard(window=8))
    for rewards in visits[:20]:
        first.decide(rewards, keys=range(8))
    second = stages(audit=0.3, guard=ForgettingGuard(window=8))
    second.load_state_dict(json.loads(json.dumps(first.state_dict())))
    for rewards in visits[20:]:
        one, other = (each.decide(rewards, keys=range(8)) for each in (first, second))
        assert torch.equal(one.expand, other.expand)
    assert first.state_dict() == second.state_dict()
    with pytest.raises(DataError, match="format 2"):
        second.load_state_dict({"format": 2})
