"""Laws of the equations of Hybrid-GRPO: padding, order and units do not matter."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from lowdim.policy import (
    clipped_surrogate,
    effective_reward,
    effective_sample_size,
    group_advantages,
    select_rows,
)
from lowdim.policy.selection import Selection

SEEDS = st.integers(0, 2**31 - 1)
RULES: list[Selection] = ["both", "top", "max_variance", "random"]


def batch(seed, *, prompts=2, group=4, tokens=5):
    g = torch.Generator().manual_seed(seed)
    rows = prompts * group
    length = torch.randint(1, tokens + 1, (rows,), generator=g)
    mask = (torch.arange(tokens) < length[:, None]).float()
    logp, old, large = -torch.rand(3, rows, tokens, generator=g) * 3
    reward = torch.randint(0, 2, (rows,), generator=g).float()
    return logp, old, large, mask, reward


def loss_and_gradient(logp, old, large, mask, reward, *, group=4, N=9, **options):
    logp = logp.clone().requires_grad_()
    r = effective_reward(reward, large, old, mask, alpha=1.0, max_length=N)
    loss, ratios = clipped_surrogate(
        logp, old, group_advantages(r, group=group), mask, max_length=N, **options
    )
    loss.backward()
    return loss.detach(), logp.grad, ratios


@settings(max_examples=25, deadline=None)
@given(SEEDS, st.sampled_from(["token", "sequence"]), st.sampled_from([None, 3.0]))
def test_padding_changes_nothing_whatever_stands_there(seed, level, cap):
    logp, old, large, mask, reward = batch(seed)
    loss, gradient, ratios = loss_and_gradient(logp, old, large, mask, reward, level=level, ratio_cap=cap)
    garbage = torch.full((mask.shape[0], 10), -torch.inf)
    wide = [torch.cat([x, garbage], 1) for x in (logp, old, large)]
    padded = torch.cat([mask, torch.zeros_like(garbage)], 1)
    again, wide_gradient, wide_ratios = loss_and_gradient(*wide, padded, reward, level=level, ratio_cap=cap)
    torch.testing.assert_close(again, loss, rtol=1e-6, atol=1e-7)
    torch.testing.assert_close(wide_gradient[:, :5], gradient, rtol=1e-5, atol=1e-7)
    assert not wide_gradient[:, 5:].any()
    assert wide_ratios.tokens == ratios.tokens


@settings(max_examples=25, deadline=None)
@given(SEEDS)
def test_order_within_a_group_does_not_matter(seed):
    logp, old, large, mask, reward = batch(seed)
    loss, gradient, _ = loss_and_gradient(logp, old, large, mask, reward)
    g = torch.Generator().manual_seed(seed)
    order = torch.cat([torch.randperm(4, generator=g), 4 + torch.randperm(4, generator=g)])
    again, shuffled, _ = loss_and_gradient(*(x[order] for x in (logp, old, large, mask, reward)))
    torch.testing.assert_close(again, loss, rtol=1e-6, atol=1e-7)
    torch.testing.assert_close(shuffled, gradient[order], rtol=1e-5, atol=1e-7)


@settings(max_examples=25, deadline=None)
@given(SEEDS)
def test_a_batch_is_the_mean_of_its_groups(seed):
    rows = batch(seed)
    loss, _, _ = loss_and_gradient(*rows)
    halves = [loss_and_gradient(*(x[part] for x in rows))[0] for part in (slice(0, 4), slice(4, 8))]
    torch.testing.assert_close(loss, (halves[0] + halves[1]) / 2, rtol=1e-5, atol=1e-7)


@settings(max_examples=25, deadline=None)
@given(SEEDS)
def test_rows_without_advantage_may_be_left_out_when_they_are_counted(seed):
    logp, old, _, mask, reward = batch(seed)
    advantage = group_advantages(reward, group=4)
    loss, _ = clipped_surrogate(logp, old, advantage, mask, max_length=9)
    kept = advantage.abs() > 1e-6
    part, _ = clipped_surrogate(logp[kept], old[kept], advantage[kept], mask[kept], max_length=9, rows=8)
    torch.testing.assert_close(part, loss, rtol=1e-5, atol=1e-7)


@settings(max_examples=60, deadline=None)
@given(
    SEEDS,
    st.integers(1, 3),
    st.sampled_from([(2, 2), (5, 2), (6, 4), (14, 8)]),
    st.sampled_from(RULES),
    st.integers(1, 9),
)
def test_kept_rows_are_distinct_rows_of_their_prompt(seed, prompts, sizes, rule, values):
    M, G = sizes
    g = torch.Generator().manual_seed(seed)
    score = torch.randint(0, values, (prompts * M,), generator=g).float()
    kept = select_rows(score, candidates=M, keep=G, rule=rule, generator=g).view(prompts, G)
    assert all(len(set(row)) == G for row in kept.tolist())
    assert torch.equal(kept // M, torch.arange(prompts)[:, None].expand(-1, G))
    groups, chosen = score.view(prompts, M).sort(-1).values, score[kept]
    if rule == "top":
        assert torch.equal(chosen.sort(-1).values, groups[:, M - G :])
    if rule == "both":
        assert torch.equal(
            chosen.sort(-1).values, torch.cat([groups[:, : G // 2], groups[:, M - G // 2 :]], -1)
        )


@settings(max_examples=30, deadline=None)
@given(SEEDS, st.integers(2, 6), st.integers(2, 5))
def test_no_choice_varies_more_than_max_variance(seed, M, G):
    import itertools

    G = min(G, M)
    score = torch.randn(M, generator=torch.Generator().manual_seed(seed))
    kept = select_rows(score, candidates=M, keep=G, rule="max_variance")
    best = max(float(score[list(rows)].var(correction=0)) for rows in itertools.combinations(range(M), G))
    assert float(score[kept].var(correction=0)) == pytest.approx(best, rel=1e-4, abs=1e-6)


@settings(max_examples=30, deadline=None)
@given(SEEDS, st.sampled_from(RULES), st.integers(0, 6))
def test_rollouts_without_a_reward_are_kept_last(seed, rule, missing):
    g = torch.Generator().manual_seed(seed)
    score = torch.randn(6, generator=g)
    score[torch.randperm(6, generator=g)[:missing]] = torch.nan
    kept = score[select_rows(score, candidates=6, keep=4, rule=rule, generator=g)]
    assert int(kept.isnan().sum()) == max(0, 4 - (6 - missing))
    assert not group_advantages(kept, group=4)[kept.isnan()].any()


def test_ties_are_broken_by_the_seed_and_not_by_position():
    score = torch.zeros(8)
    draws = [
        tuple(select_rows(score, candidates=8, keep=2, generator=torch.Generator().manual_seed(s)).tolist())
        for s in (0, 0, *range(1, 40))
    ]
    assert draws[0] == draws[1]
    assert len({row for draw in draws for row in draw}) == 8


@settings(max_examples=30, deadline=None)
@given(SEEDS, st.floats(-700, 700))
def test_the_unit_of_the_weights_does_not_matter(seed, shift):
    log_w = 3 * torch.randn(20, generator=torch.Generator().manual_seed(seed)).double()
    size = effective_sample_size(log_w)
    assert 1 / 20 <= size <= 1
    assert effective_sample_size(log_w + shift) == pytest.approx(size, rel=1e-6)
