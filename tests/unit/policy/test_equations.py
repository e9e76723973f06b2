"""Exact small cases and refusals of the equations."""

import pytest
import torch

from lowdim.errors import DataError, ShapeError
from lowdim.policy import (
    PooledSampleSize,
    clipped_surrogate,
    distillation_loss,
    distillation_term,
    effective_reward,
    group_advantages,
    group_shares,
    kl_per_token,
    select_rows,
)
from lowdim.policy.hints import sampling_log_probs

ONE = torch.ones(1, 1)


def test_without_distillation_the_reward_is_the_same_object():
    reward = torch.tensor([0.5])
    assert effective_reward(reward, -ONE, -ONE, ONE, alpha=0, max_length=1) is reward


def test_differences_of_bfloat16_are_taken_in_float32():
    large = torch.full((1, 2000), -1.0, dtype=torch.bfloat16)
    small = torch.full((1, 2000), -1.0078125, dtype=torch.bfloat16)
    term = distillation_term(large, small, torch.ones(1, 2000), max_length=2000)
    assert term.dtype == torch.float32
    assert float(term) == pytest.approx(0.0078125, rel=1e-5)


def test_infinity_at_padding_is_not_seen_and_at_a_token_it_is():
    inf = torch.tensor([[-1.0, -torch.inf]])
    half = torch.tensor([[1.0, 0.0]])
    assert kl_per_token(inf, inf, half) == 0
    assert torch.isinf(distillation_term(inf, -torch.ones(1, 2), torch.ones(1, 2), max_length=2)).all()


def test_a_token_absurd_for_the_small_policy_does_not_overflow():
    loss, ratios = clipped_surrogate(-ONE, -500 * ONE, torch.tensor([-1.0]), ONE, max_length=1)
    assert torch.isfinite(loss)
    assert ratios.maximum == pytest.approx(4.85e8, rel=0.01)


@pytest.mark.parametrize(("cap", "expected"), [(None, 5.0), (3.0, 3.0)])
def test_a_cap_bounds_what_negative_advantages_leave_unbounded(cap, expected):
    logp, old = torch.log(ONE / 2), torch.log(ONE / 10)
    loss, _ = clipped_surrogate(logp, old, torch.tensor([-1.0]), ONE, max_length=1, ratio_cap=cap)
    assert float(loss) == pytest.approx(expected, rel=1e-5)


def test_asymmetric_interval():
    w = torch.tensor([[1.25], [0.75]])
    loss, ratios = clipped_surrogate(
        w.log(), 0 * w, torch.tensor([1.0, -1.0]), torch.ones(2, 1), max_length=1, clip=(0.2, 0.28)
    )
    assert float(loss) == pytest.approx(-(1.25 - 0.8) / 2, rel=1e-5)
    assert (ratios.clipped_low, ratios.clipped_high, ratios.outside) == (0.5, 0.0, 0.5)


def test_sequence_ratios_are_geometric_means():
    logp = torch.tensor([[0.0, 0.0, 9.0]])
    old = torch.tensor([[-0.2, 0.0, 0.0]])
    loss, ratios = clipped_surrogate(
        logp, old, torch.tensor([1.0]), torch.tensor([[1.0, 1.0, 0.0]]), max_length=2, level="sequence"
    )
    assert ratios.tokens == 1
    assert float(loss) == pytest.approx(-float(torch.tensor(0.1).exp()), rel=1e-5)


def test_an_empty_batch_has_statistics():
    loss, ratios = clipped_surrogate(ONE, ONE, torch.ones(1), 0 * ONE, max_length=1)
    assert float(loss) == 0
    assert ratios.tokens == 0


@pytest.mark.parametrize("scale", ["none", "group", "batch"])
def test_advantages_as_pytorch_computes_them(scale):
    r = torch.rand(6, generator=torch.Generator().manual_seed(0))
    expected = r.view(2, 3) - r.view(2, 3).mean(1, keepdim=True)
    if scale == "group":
        expected = expected / (r.view(2, 3).std(1, keepdim=True) + 1e-4)
    if scale == "batch":
        expected = expected / (r.std() + 1e-4)
    torch.testing.assert_close(group_advantages(r, group=3, scale=scale), expected.flatten())


def test_rollouts_without_a_reward_have_no_advantage_and_no_say():
    r = torch.tensor([1.0, torch.nan, 0.0, torch.nan, torch.nan, torch.nan])
    assert group_advantages(r, group=3).tolist() == [0.5, 0.0, -0.5, 0.0, 0.0, 0.0]


def test_group_shares_count_what_is_there():
    r = torch.tensor([0.0, 0.0, 1.0, 1.0, 0.5, torch.nan, torch.nan, torch.nan, 0.0, 1.0])
    shares = group_shares(r, group=2)
    assert shares.groups_all_zero == pytest.approx(1 / 5)
    assert shares.groups_all_one == pytest.approx(1 / 5)
    assert shares.groups_flat == pytest.approx(3 / 5)
    assert shares.rollouts_zero == pytest.approx(3 / 7)


def test_hints_belong_to_whom_the_user_says():
    small, large, mask = -torch.tensor([[3.0, 1.0]]), -torch.tensor([[0.5, 0.7]]), torch.tensor([[1, 1]])
    old, loss_mask = sampling_log_probs(small, large, mask, hint_tokens=1, ratio="small")
    assert old is small
    assert loss_mask is mask
    old, _ = sampling_log_probs(small, large, mask, hint_tokens=1, ratio="large")
    assert old.tolist() == [[-0.5, -1.0]]
    old, loss_mask = sampling_log_probs(small, large, mask, hint_tokens=1, ratio="ignore")
    assert old is small
    assert loss_mask.tolist() == [[0, 1]]


def test_pool_survives_a_checkpoint():
    pool, again = PooledSampleSize(capacity=8), PooledSampleSize()
    pool.update(torch.tensor([0.0, 1.0, 2.0]))
    again.load_state_dict(pool.state_dict())
    assert again.fraction() == pool.fraction()
    assert again.rows == 3


@pytest.mark.parametrize(
    ("call", "error", "words"),
    [
        (lambda: effective_reward(ONE[0], -ONE, -ONE, ONE, alpha=-1, max_length=1), DataError, "alpha=-1"),
        (
            lambda: effective_reward(ONE[0], -ONE, -ONE, ONE, alpha=float("nan"), max_length=1),
            DataError,
            "alpha",
        ),
        (
            lambda: effective_reward(torch.ones(2), -ONE, -ONE, ONE, alpha=1, max_length=1),
            ShapeError,
            "rollouts",
        ),
        (lambda: distillation_term(-ONE, -torch.ones(1, 2), ONE, max_length=1), ShapeError, "differ"),
        (lambda: distillation_term(-ONE, -ONE, ONE, max_length=0), DataError, "max_length=0"),
        (
            lambda: distillation_term(*3 * [torch.ones(1, 3)], max_length=2),
            DataError,
            "a rollout has 3 tokens",
        ),
        (
            lambda: distillation_term(-ONE, -ONE, ONE, max_length=1, estimator="k2"),
            DataError,
            "In the reward",
        ),
        (lambda: distillation_loss(-ONE, -ONE, ONE, max_length=1, estimator="k1"), DataError, "teaches"),
        (lambda: distillation_loss(-ONE, -ONE, ONE, max_length=1, level="word"), DataError, "level='word'"),
        (lambda: select_rows(torch.ones(5), candidates=2, keep=2), ShapeError, "candidates=2"),
        (lambda: select_rows(torch.ones(4), candidates=4, keep=3), DataError, "odd"),
        (lambda: select_rows(torch.ones(4), candidates=4, keep=6), DataError, "keep=6"),
        (lambda: select_rows(torch.ones(4), candidates=4, keep=2, rule="best"), DataError, "rule='best'"),
        (lambda: group_advantages(torch.ones(4), group=3), ShapeError, "groups of 3"),
        (lambda: group_advantages(torch.ones(4), group=2, scale="std"), DataError, "scale='std'"),
        (lambda: clipped_surrogate(ONE, ONE, ONE[0], ONE, max_length=1, clip=0.0), DataError, "clip"),
        (
            lambda: clipped_surrogate(ONE, ONE, ONE[0], ONE, max_length=1, ratio_cap=1.1),
            DataError,
            "ratio_cap",
        ),
        (lambda: clipped_surrogate(ONE, ONE, torch.ones(2), ONE, max_length=1), ShapeError, "advantages"),
        (lambda: sampling_log_probs(ONE, ONE, ONE, hint_tokens=1, ratio="both"), DataError, "ratio='both'"),
    ],
)
def test_refusals(call, error, words):
    with pytest.raises(error, match=words.replace("'", ".")):
        call()
