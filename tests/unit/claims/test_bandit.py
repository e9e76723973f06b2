"""The neural bandit: what is counted, what is stopped, and that seeds side by side are seeds alone."""

import pytest
import torch

from lowdim.claims import bandit


@pytest.fixture(autouse=True)
def short(monkeypatch):
    monkeypatch.setattr(bandit, "BUDGET", 640)
    monkeypatch.setattr(bandit, "WARM_UP", 60)


def setting(**changes):
    return bandit.Setting(**{"group": 8, "prompts": 8, "rate": 8e-3} | changes)


def test_rollouts_are_counted_and_the_reward_grows():
    curves = bandit.train(setting(), seeds=2)
    assert curves.rollouts[:, 0].tolist() == [64.0 * step for step in range(11)]
    assert curves.reward[0, 0] == curves.reward[0, 1]  # from one network
    assert (curves.final > curves.reward[0]).all()
    assert not torch.equal(curves.final[:1], curves.final[1:])  # seeds sample on their own


def test_staging_makes_fewer_rollouts_per_step_and_chance_alike():
    staged, chance = (bandit.train(setting(first=2, random_stop=chance), seeds=2) for chance in (False, True))
    for curves in (staged, chance):
        steps = curves.rollouts.diff(dim=0)
        made = steps[steps > 0]
        assert ((made - 64) % 6 == 0).all()  # a group that stops lacks six
        assert made.min() < 64
    # Before anything is learned both stop at the same rate.
    assert staged.rollouts[1].tolist() == chance.rollouts[1].tolist()


def test_first_reach():
    curves = bandit.Curves(
        torch.tensor([[0.0, 0.0], [10.0, 8.0], [20.0, 16.0]]),
        torch.tensor([[0.1, 0.1], [0.6, 0.2], [0.5, 0.3]]),
    )
    assert bandit.first_reach(curves, 0.5).tolist() == [10.0, torch.inf]
