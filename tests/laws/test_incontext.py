"""Laws of in-context learning: what risks, weights and prompts may not depend on, and their bounds."""

from itertools import pairwise

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from lowdim.incontext import (
    LinearAttention,
    PromptTransformer,
    SubspaceTasks,
    best_low_rank_update,
    optimal_weights,
    risk,
    sample_moments,
)
from lowdim.incontext.baselines import BASELINES
from lowdim.incontext.families import FAMILIES

SEEDS = st.integers(0, 2**16)
D = 6


def draw(seed, *shape):
    return torch.randn(shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def covariance(seed, *, rank=D):
    A = draw(seed, D, rank)
    return A @ A.mT / rank


def rotation(seed):
    return torch.linalg.qr(draw(seed, D, D)).Q


SETTINGS = st.fixed_dictionaries(
    {"n": st.integers(1, 200), "noise": st.floats(0.01, 2), "seed": SEEDS, "colored": st.booleans()}
)


def problem(setting):
    seed = setting["seed"]
    where = {"covariance": covariance(seed, rank=1 + seed % D), "n": setting["n"], "noise": setting["noise"]}
    if setting["colored"]:
        where["inputs"] = covariance(seed + 1) + 0.1 * torch.eye(D, dtype=torch.float64)
    return where


@settings(max_examples=30, deadline=None)
@given(setting=SETTINGS)
def test_no_other_weights_have_a_lower_risk(setting):
    where = problem(setting)
    W = optimal_weights(where["covariance"], **{k: v for k, v in where.items() if k != "covariance"})
    least, change = risk(W, **where), draw(setting["seed"] + 2, D, D)
    for size in (1e-2, 1.0):
        for sign in (1, -1):
            assert risk(W + sign * size * change, **where) >= least - 1e-9
    assert -1e-9 <= least <= risk(0 * W, **where) + 1e-9
    # At the best weights the derivative vanishes: the risk on either side is the same.
    up, down = (risk(W + sign * change, **where) for sign in (1, -1))
    assert up == pytest.approx(down, rel=1e-6)


@settings(max_examples=30, deadline=None)
@given(setting=SETTINGS, turn=SEEDS)
def test_risks_do_not_depend_on_the_axes(setting, turn):
    where, Q = problem(setting), rotation(turn)
    W = draw(setting["seed"] + 3, D, D)
    turned = {**where, "covariance": Q @ where["covariance"] @ Q.mT}
    if "inputs" in where:
        turned["inputs"] = Q @ where["inputs"] @ Q.mT
    assert risk(Q @ W @ Q.mT, **turned) == pytest.approx(risk(W, **where), rel=1e-9)


@settings(max_examples=30, deadline=None)
@given(setting=SETTINGS, scale=st.sampled_from([1e-2, 3.0]))
def test_labels_in_another_unit_have_the_same_weights(setting, scale):
    where = problem(setting)
    other = {**where, "covariance": scale**2 * where["covariance"], "noise": scale * where["noise"]}
    W, V = (
        optimal_weights(one["covariance"], **{k: v for k, v in one.items() if k != "covariance"})
        for one in (where, other)
    )
    torch.testing.assert_close(V, W)
    assert risk(V, **other) == pytest.approx(scale**2 * risk(W, **where), rel=1e-6, abs=1e-12)


@settings(max_examples=20, deadline=None)
@given(setting=SETTINGS)
def test_adapters_are_better_with_every_rank_and_in_the_end_the_best(setting):
    where, W = problem(setting), draw(setting["seed"] + 4, D, D)
    updates = [best_low_rank_update(W, rank=rank, **where) for rank in range(D + 1)]
    risks = [update.risk for update in updates]
    before = risk(W, **where)
    assert risks[0] == pytest.approx(before)
    assert all(b <= a + 1e-9 * before for a, b in pairwise(risks))
    best = optimal_weights(where["covariance"], **{k: v for k, v in where.items() if k != "covariance"})
    assert risks[-1] == pytest.approx(risk(best, **where), abs=1e-8 * before)
    assert risk(updates[2].weights(W), **where) == pytest.approx(risks[2], abs=1e-8 * before)
    # No update of that rank that is drawn at random does better.
    other = draw(setting["seed"] + 5, D, 2) @ draw(setting["seed"] + 6, 2, D)
    assert risk(W + other, **where) >= risks[2] - 1e-8 * before


@pytest.mark.parametrize("family", FAMILIES)
@settings(max_examples=10, deadline=None)
@given(seed=SEEDS)
def test_a_seed_decides_prompts_and_the_global_generator_does_not(family, seed):
    tasks = SubspaceTasks(D, r=2, subspaces=3, noise=0.2, family=family, seed=seed)
    first = tasks.sample(4, n=3, seed=seed)
    torch.manual_seed(seed + 1)
    second, other = tasks.sample(4, n=3, seed=seed), tasks.sample(4, n=3, seed=seed + 1)
    for name in ("X", "y", "xq", "yq", "clean", "which"):
        assert torch.equal(getattr(first, name), getattr(second, name))
    assert not torch.equal(first.X, other.X)


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("baseline", BASELINES)
@settings(max_examples=5, deadline=None)
@given(seed=SEEDS)
def test_the_order_of_examples_does_not_matter_to_baselines(baseline, family, seed):
    tasks = SubspaceTasks(D, r=2, noise=0.3, family=family, seed=seed)
    prompt = tasks.sample(3, n=8, seed=seed)
    order = torch.randperm(8, generator=torch.Generator().manual_seed(seed))
    mixed = type(prompt)(
        prompt.X[:, order], prompt.y[:, order], prompt.xq, prompt.yq, prompt.clean[:, order], prompt.which
    )
    predict = BASELINES[baseline]
    torch.testing.assert_close(predict(mixed, tasks), predict(prompt, tasks))


MODELS = {
    "merged": lambda: LinearAttention(D),
    "in parts": lambda: LinearAttention(D, merged=False, seed=0),
    "alternating": lambda: PromptTransformer(D, n_positions=9, n_layer=1, n_head=2, n_embd=8, seed=0),
    "paired": lambda: PromptTransformer(
        D, n_positions=9, n_layer=1, n_head=2, n_embd=8, tokens="paired", seed=0
    ),
}


@pytest.mark.parametrize("name", MODELS)
def test_a_batch_is_its_items(name):
    model = MODELS[name]().double()
    if name == "merged":
        model.W.data.copy_(draw(0, D, D))
    prompt = SubspaceTasks(D, r=2, noise=0.1, seed=0).sample(5, n=8, seed=0)
    fields = ("X", "y", "xq", "yq", "clean", "which")
    items = [type(prompt)(*(getattr(prompt, field)[i : i + 1] for field in fields)) for i in range(5)]
    whole = model.errors(prompt)
    torch.testing.assert_close(torch.cat([model.errors(item) for item in items]), whole)
    torch.testing.assert_close(model.loss(prompt), whole.mean())


@settings(max_examples=10, deadline=None)
@given(seed=SEEDS, n=st.integers(1, 50))
def test_moments_and_prompts_have_the_same_risk(seed, n):
    # Mean over many draws; both estimate the closed form.
    tasks = SubspaceTasks(D, r=2, noise=0.5, seed=seed)
    model = LinearAttention(D).double()
    model.W.data.copy_(optimal_weights(tasks.covariance, n=n, noise=0.5))
    theory = risk(model.W.detach(), covariance=tasks.covariance, n=n, noise=0.5)
    with torch.no_grad():
        moments = sample_moments(tasks, 8000, n=n, seed=seed)
        errors = (model.predict(moments.b_hat, moments.xq) - moments.yq).square()
    assert float(errors.mean()) == pytest.approx(theory, abs=6 * float(errors.std()) / 8000**0.5)
