"""Risks over angles and contexts, and the baselines beside them."""

import pytest
import torch

from lowdim.errors import DataError, RankError, ShapeError
from lowdim.incontext import (
    LinearAttention,
    PromptTransformer,
    ReluNetwork,
    SubspaceTasks,
    evaluate,
    optimal_weights,
    risk,
)
from lowdim.incontext.baselines import BASELINES, baseline_errors


def best(tasks, n):
    model = LinearAttention(tasks.d).double()
    model.load_state_dict({"W": optimal_weights(tasks.covariance, n=n, noise=tasks.noise)})
    return model


def test_measurement_and_theory_agree():
    tasks = SubspaceTasks(6, r=2, noise=0.3, seed=0)
    model = best(tasks, 20)
    table = evaluate(model, tasks, angles_deg=[0, 60], context_lengths=[5, 20], prompts=20000, seed=1)
    assert len(table) == 8
    measured = table[table["predictor"] == "model"].set_index(["angle_deg", "n"])
    theory = table[table["predictor"] == "theory"].set_index(["angle_deg", "n"])
    assert ((measured["risk"] - theory["risk"]).abs() < 4 * measured["se"]).all()
    W = model.W.detach()
    turned = tasks.rotated(60).covariance
    assert theory["risk"][60, 5] == pytest.approx(risk(W, covariance=turned, n=5, noise=0.3))
    assert (table["relative"] == table["risk"] / 2).all()


def test_a_transformer_has_no_theory_and_may_see_all_lengths():
    tasks = SubspaceTasks(4, r=1, family="relu", seed=0)
    model = PromptTransformer(4, n_positions=7, n_layer=1, n_head=1, n_embd=8, seed=0)
    table = evaluate(model, tasks, angles_deg=[0, 90], context_lengths=[1, 6], prompts=50)
    assert table["predictor"].unique().tolist() == ["model"]
    assert table["n"].tolist() == [1, 6, 1, 6]


def test_numbers_depend_on_the_seed_only():
    tasks = SubspaceTasks(4, r=1, noise=0.1, seed=0)
    model = best(tasks, 5)
    first, second, other = (
        evaluate(model, tasks, angles_deg=[0, 45], context_lengths=[5], prompts=40, seed=seed)
        for seed in (0, 0, 1)
    )
    assert first.equals(second)
    assert not first.equals(other)


def test_exact_baselines():
    tasks = SubspaceTasks(4, r=2, seed=0)
    prompt = tasks.sample(50, n=6, seed=0)
    assert float(baseline_errors("least squares", prompt, tasks).max()) < 1e-16
    assert float(baseline_errors("oracle", prompt.first(2), tasks).max()) < 1e-16
    torch.testing.assert_close(baseline_errors("zero", prompt, tasks), prompt.yq.square())
    # With fewer examples than dimensions: the solution of least norm.
    short = prompt.first(3)
    b = torch.linalg.lstsq(short.X, short.y.unsqueeze(-1), driver="gelsd").solution.squeeze(-1)
    wanted = ((short.xq * b).sum(-1) - short.yq).square()
    torch.testing.assert_close(baseline_errors("least squares", short, tasks), wanted)


def test_ridge_and_oracle_are_the_best_of_their_penalties():
    tasks = SubspaceTasks(4, r=2, noise=0.7, seed=0)
    source = torch.Generator().manual_seed(0)
    b = torch.randn(20000, 4, 1, dtype=torch.float64, generator=source) * (2 / 4) ** 0.5
    prompt = tasks.sample(20000, n=5, seed=source)
    # Task vectors in all directions, for which ridge regression in all dimensions is the best there is.
    y = (prompt.X @ b).squeeze(-1) + 0.7 * torch.randn(20000, 5, dtype=torch.float64, generator=source)
    yq = (prompt.xq.unsqueeze(1) @ b).flatten()
    spread = type(prompt)(prompt.X, y, prompt.xq, yq, y, prompt.which)

    def ridge(X, y, xq, penalty):
        gram = X.mT @ X + penalty * torch.eye(X.shape[-1], dtype=X.dtype)
        return (xq * torch.linalg.solve(gram, (X.mT @ y.unsqueeze(-1)).squeeze(-1))).sum(-1)

    def least(X, y, xq, yq, center):
        risks = {f: float((ridge(X, y, xq, f * center) - yq).square().mean()) for f in (0.5, 1.0, 2.0)}
        return min(risks, key=risks.get), risks[1.0]

    factor, found = least(spread.X, spread.y, spread.xq, spread.yq, 0.49 * 4 / 2)
    assert factor == 1.0
    assert float(baseline_errors("ridge", spread, tasks).mean()) == pytest.approx(found)
    u, uq = prompt.X @ tasks.bases[0], prompt.xq @ tasks.bases[0]
    factor, found = least(u, prompt.y, uq, prompt.yq, 0.49)
    assert factor == 1.0
    assert float(baseline_errors("oracle", prompt, tasks).mean()) == pytest.approx(found)


@pytest.mark.parametrize("family", ["relu", "single-index", "fourier"])
def test_of_other_functions_baselines_stand_in_order(family):
    tasks = SubspaceTasks(5, r=1, noise=0.1, family=family, seed=0)
    table = evaluate(
        None, tasks, angles_deg=[0], context_lengths=[20], prompts=2000, baselines=list(BASELINES)
    )
    found = table.set_index("predictor")["risk"]
    assert found["oracle"] < 0.2 * found["ridge"]
    assert found["ridge"] < found["zero"]
    assert found["zero"] == pytest.approx(1, abs=0.15)


def test_a_link_without_a_linear_part_leaves_ridge_at_zero():
    from lowdim.incontext import SingleIndex

    tasks = SubspaceTasks(4, r=1, family=SingleIndex("quadratic"), seed=0)
    prompt = tasks.sample(20, n=8, seed=0)
    assert torch.equal(baseline_errors("ridge", prompt, tasks), prompt.yq.square())


def test_the_oracle_takes_the_subspace_of_every_problem():
    tasks = SubspaceTasks(6, r=1, subspaces=3, family=ReluNetwork(4), seed=0)
    prompt = tasks.sample(60, n=12, seed=0)
    assert float(baseline_errors("oracle", prompt, tasks).median()) < 0.01


@pytest.mark.parametrize(
    ("options", "error", "text"),
    [
        ({"context_lengths": [0]}, DataError, "context_lengths=0"),
        ({"context_lengths": []}, DataError, "context_lengths is empty"),
        ({"angles_deg": [91]}, DataError, "must lie in"),
        ({"prompts": 1}, DataError, "prompts=1"),
        ({"baselines": ["luck"]}, DataError, "baseline 'luck' is unknown"),
        ({"seed": -1}, DataError, "seed=-1"),
        ({"toward": "inside"}, RankError, "span no 1 directions"),
        ({"context_lengths": [9]}, DataError, "9 examples and the query exceeds n_positions=9"),
    ],
)
def test_bad_options_are_refused(options, error, text):
    tasks = SubspaceTasks(4, r=1, seed=0)
    model = PromptTransformer(4, n_positions=9, n_layer=1, n_head=1, n_embd=8, seed=0)
    with pytest.raises(error, match=text):
        evaluate(model, tasks, **{"context_lengths": [4], "prompts": 10, **options})


def test_a_model_of_another_dimension_is_refused():
    with pytest.raises(ShapeError, match="model has d=3"):
        evaluate(LinearAttention(3), SubspaceTasks(4, r=1, seed=0), context_lengths=[2])
    with pytest.raises(DataError, match="baseline='luck'"):
        baseline_errors("luck", None, None)
