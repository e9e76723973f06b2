"""Closed forms: weights, risks and low-rank updates, against values worked out by hand, and refusals."""

import pytest
import torch

from lowdim.errors import DataError, RankError, ShapeError
from lowdim.incontext import (
    SubspaceTasks,
    best_low_rank_update,
    moment_covariance,
    optimal_weights,
    risk,
    risk_vs_angle,
    train_low_rank_update,
)

EYE = torch.eye(4, dtype=torch.float64)


def test_the_weights_of_a_subspace_are_a_multiple_of_its_projection():
    tasks = SubspaceTasks(20, r=5, noise=0.1, seed=0)
    W = optimal_weights(tasks.covariance, n=100, noise=0.1)
    c = 100 / (100 + 1 + 5 + 0.01)
    assert float((W - c * tasks.covariance).abs().max()) < 1e-12


def test_every_eigenvector_of_a_mixture_has_its_weight():
    n, noise = 7, 0.3
    mu = torch.tensor([2.0, 1.0, 0.25, 0.0], dtype=torch.float64)
    W = optimal_weights(torch.diag(mu), n=n, noise=noise)
    wanted = mu / ((1 + 1 / n) * mu + (mu.sum() + noise**2) / n)
    torch.testing.assert_close(W, torch.diag(wanted))


def test_the_risk_over_the_angle_is_the_formula():
    n, m, r, noise = 50, 20, 2, 0.2
    tasks = SubspaceTasks(9, r=r, noise=noise, seed=0)
    U, V = tasks.bases[0], tasks.direction()
    W = optimal_weights(tasks.covariance, n=n, noise=noise)
    angles = torch.tensor([0.0, 10, 45, 90], dtype=torch.float64)
    found = risk_vs_angle(W, U=U, V=V, angles_deg=angles, n=m, noise=noise)
    c, cos2 = n / (n + 1 + r + noise**2), torch.cos(angles.deg2rad()) ** 2
    wanted = r - 2 * c * r * cos2 + c**2 * ((1 + 1 / m) * r * cos2 + r * (r + noise**2) / m)
    torch.testing.assert_close(found, wanted)
    long = risk_vs_angle(optimal_weights(tasks.covariance, n=10**8), U=U, V=V, angles_deg=angles, n=10**8)
    torch.testing.assert_close(long, r * (1 - cos2), atol=1e-6, rtol=0)


def test_a_union_is_flat_between_its_subspaces_and_fails_outside():
    tasks = SubspaceTasks(20, r=5, subspaces=2, noise=0.1, seed=0)
    W = optimal_weights(tasks.covariance, n=100, noise=0.1)
    curve = [risk(W, covariance=tasks.rotated(t).covariance, n=100, noise=0.1) for t in (0, 30, 45, 90)]
    assert max(curve) - min(curve) < 1e-12
    assert curve[0] == pytest.approx(0.4963, abs=5e-5)
    outside = tasks.rotated(90, toward="outside").covariance
    assert risk(W, covariance=outside, n=100, noise=0.1) > 5


def test_a_union_and_one_gaussian_on_its_span_have_the_same_weights():
    two = SubspaceTasks(8, r=2, subspaces=2, seed=0)
    span = SubspaceTasks(8, subspaces=two.bases.movedim(0, 1).flatten(1))
    n = 30
    torch.testing.assert_close(
        optimal_weights(two.covariance, n=n), optimal_weights(span.covariance / 2, n=n)
    )


def test_updates_of_every_rank():
    tasks = SubspaceTasks(12, r=3, noise=0.1, seed=0)
    W = optimal_weights(tasks.covariance, n=50, noise=0.1)
    where = {"covariance": tasks.rotated(60).covariance, "n": 50, "noise": 0.1}
    best = optimal_weights(**where)
    risks = []
    for rank in range(8):
        update = best_low_rank_update(W, rank=rank, **where)
        assert update.B.shape == (12, rank)
        assert update.risk == pytest.approx(risk(update.weights(W), **where), abs=1e-12)
        risks.append(update.risk)
    assert risks == sorted(risks, reverse=True)
    torch.testing.assert_close(update.weights(W), best)
    assert int(torch.linalg.matrix_rank(best - W, rtol=1e-10)) == 6
    assert risks[6] == pytest.approx(risk(best, **where), abs=1e-12)


def test_adam_reaches_the_best_update_and_rank_0_changes_nothing():
    tasks = SubspaceTasks(6, r=2, noise=0.1, seed=0)
    W = optimal_weights(tasks.covariance, n=40, noise=0.1)
    where = {"covariance": tasks.rotated(45).covariance, "n": 40, "noise": 0.1}
    found = train_low_rank_update(W, rank=2, steps=600, **where)
    assert found.risk == pytest.approx(best_low_rank_update(W, rank=2, **where).risk, abs=1e-4)
    assert train_low_rank_update(W, rank=0, **where).risk == pytest.approx(risk(W, **where))


@pytest.mark.parametrize("function", [moment_covariance, optimal_weights])
@pytest.mark.parametrize(
    ("options", "error", "text"),
    [
        ({"n": 0}, DataError, "n=0 must be an integer >= 1"),
        ({"noise": -1.0}, DataError, "noise=-1.0 must be a standard deviation >= 0"),
        ({"covariance": -EYE}, DataError, "negative eigenvalue"),
        ({"covariance": EYE[:3]}, ShapeError, r"expected \(d, d\)"),
        ({"covariance": EYE * torch.nan}, DataError, "NaN or infinity"),
        ({"covariance": [[1.0]]}, DataError, "must be a tensor"),
        ({"inputs": -EYE}, DataError, "inputs has the negative eigenvalue"),
    ],
)
def test_bad_moments_are_refused(function, options, error, text):
    given = {"covariance": EYE, "n": 5, **options}
    with pytest.raises(error, match=text):
        function(given.pop("covariance"), **given)


def test_labels_that_are_always_zero_have_no_best_weights():
    with pytest.raises(DataError, match=r"singular .*noise > 0"):
        optimal_weights(0 * EYE, n=5)
    with pytest.raises(DataError, match="singular"):
        best_low_rank_update(EYE, covariance=0 * EYE, n=5, rank=1)
    torch.testing.assert_close(optimal_weights(0 * EYE, n=5, noise=0.1), 0 * EYE)
    with pytest.raises(DataError, match="singular"):
        optimal_weights(EYE, n=5, inputs=torch.diag(torch.tensor([1.0, 1, 1, 0], dtype=torch.float64)))


def test_other_refusals():
    with pytest.raises(ShapeError, match="W has shape"):
        risk(EYE[:2, :2], covariance=EYE, n=5)
    with pytest.raises(RankError, match="rank=5 must be an integer from 0 to 4"):
        best_low_rank_update(EYE, covariance=EYE, n=5, rank=5)
    with pytest.raises(RankError, match="rank=-1"):
        train_low_rank_update(EYE, covariance=EYE, n=5, rank=-1)
    with pytest.raises(DataError, match="steps=0"):
        train_low_rank_update(EYE, covariance=EYE, n=5, rank=1, steps=0)
    with pytest.raises(DataError, match="lr=0"):
        train_low_rank_update(EYE, covariance=EYE, n=5, rank=1, lr=0)
    U, V = EYE[:, :1], EYE[:, 1:2]
    with pytest.raises(DataError, match="W must be a tensor"):
        risk_vs_angle(EYE.tolist(), U=U, V=V, angles_deg=[10], n=5)
    with pytest.raises(DataError, match="must lie in"):
        risk_vs_angle(EYE, U=U, V=V, angles_deg=[100], n=5)
    with pytest.raises(DataError, match="together must be orthonormal"):
        risk_vs_angle(EYE, U=U, V=U, angles_deg=[10], n=5)
    with pytest.raises(ShapeError, match="one shape"):
        risk_vs_angle(EYE, U=U, V=EYE[:, 1:3], angles_deg=[10], n=5)
    with pytest.raises(RankError, match="2 r <= d"):
        risk_vs_angle(EYE, U=EYE[:, :3], V=EYE[:, :3], angles_deg=[10], n=5)
