"""Prompts: subspaces, angles, weights, noise, and what is refused."""

import pytest
import torch

from lowdim.algebra import Subspace
from lowdim.errors import DataError, RankError, ShapeError
from lowdim.incontext import Linear, SubspaceTasks

EYE = torch.eye(6, dtype=torch.float64)


def test_drawn_subspaces_are_orthogonal_as_long_as_they_fit():
    tasks = SubspaceTasks(6, r=2, subspaces=3, seed=0)
    together = tasks.bases.movedim(0, 1).flatten(1)
    torch.testing.assert_close(together.mT @ together, EYE)
    torch.testing.assert_close(tasks.covariance, EYE / 3)
    assert tasks.span.r == 6


def test_fewer_subspaces_are_the_first_of_more():
    few, many = (SubspaceTasks(4, r=2, subspaces=k, seed=5).bases for k in (1, 3))
    assert torch.equal(few, many[:1])
    assert not torch.equal(many[2], many[0])


def test_labels_are_the_functions_of_inputs_and_noise_has_its_standard_deviation():
    tasks = SubspaceTasks(3, r=1, noise=0.5, seed=0)
    prompt = tasks.sample(4000, n=5, seed=1)
    assert prompt.X.shape == (4000, 5, 3)
    b = torch.linalg.lstsq(prompt.X, prompt.clean.unsqueeze(-1)).solution.squeeze(-1)
    torch.testing.assert_close((prompt.X @ b.unsqueeze(-1)).squeeze(-1), prompt.clean)
    torch.testing.assert_close((prompt.xq * b).sum(-1), prompt.yq)
    # Task vectors lie in the subspace.
    torch.testing.assert_close(Subspace(tasks.bases[0]).project(b), b, atol=1e-8, rtol=1e-6)
    spread = float((prompt.y - prompt.clean).std())
    assert spread == pytest.approx(0.5, rel=0.03)


def test_problems_come_from_subspaces_by_their_weights():
    tasks = SubspaceTasks(6, r=1, subspaces=3, weights=[0.7, 0.3, 0.0], seed=0)
    which = tasks.sample(4000, n=1, seed=0).which
    assert which.bincount(minlength=3).tolist()[2] == 0
    assert float((which == 0).double().mean()) == pytest.approx(0.7, abs=0.03)
    torch.testing.assert_close(
        tasks.covariance, 0.7 * tasks.bases[0] @ tasks.bases[0].mT + 0.3 * tasks.bases[1] @ tasks.bases[1].mT
    )


def test_task_vectors_on_a_sphere_have_their_length_and_second_moment():
    family, bases = Linear("sphere"), SubspaceTasks(5, r=3, seed=0).bases
    b = family.task_vectors(bases.expand(20000, -1, -1), seed=0)
    torch.testing.assert_close(b.square().sum(-1), torch.full((20000,), 3.0, dtype=torch.float64))
    torch.testing.assert_close(b.mT @ b / 20000, bases[0] @ bases[0].mT, atol=0.03, rtol=0)


def test_inputs_have_their_covariance():
    cov = torch.diag(torch.tensor([4.0, 1.0, 0.0], dtype=torch.float64))
    tasks = SubspaceTasks(3, r=1, subspaces=EYE[:3, :1].clone(), inputs=cov, seed=0)
    X = tasks.sample(20000, n=1, seed=0).X[:, 0]
    torch.testing.assert_close(X.mT @ X / 20000, cov, atol=0.1, rtol=0)
    assert tasks.variance == pytest.approx(4.0)


@pytest.mark.parametrize("toward", ["inside", "outside", "anywhere", None])
def test_all_principal_angles_are_the_angle(toward):
    tasks = SubspaceTasks(8, r=2, subspaces=2, seed=0)
    for angle in (0.0, 30.0, 90.0):
        turned = tasks.rotated(angle, toward=toward)
        angles = Subspace(tasks.bases[0]).angles(Subspace(turned.bases[0])).rad2deg()
        torch.testing.assert_close(angles, torch.full((2,), angle, dtype=torch.float64), atol=1e-6, rtol=0)
    span = Subspace.span(tasks.bases.movedim(0, 1).flatten(1))
    V = tasks.direction(toward)
    inside = float(span.project(V.mT).norm() / V.norm())
    if toward in ("inside", None):
        assert inside == pytest.approx(1)
    elif toward == "outside":
        assert inside < 1e-12
    else:
        assert 0.01 < inside < 0.99


def test_columns_may_turn_by_angles_of_their_own():
    tasks = SubspaceTasks(6, r=2, seed=0)
    turned = tasks.rotated([10.0, 70.0])
    angles = Subspace(tasks.bases[0]).angles(Subspace(turned.bases[0])).rad2deg()
    torch.testing.assert_close(angles.sort().values, torch.tensor([10.0, 70.0], dtype=torch.float64))


def test_one_of_two_subspaces_turned_by_90_degrees_is_the_other():
    tasks = SubspaceTasks(7, r=3, subspaces=2, seed=3)
    assert float(Subspace(tasks.rotated(90).bases[0]).distance(Subspace(tasks.bases[1]))) < 1e-6


def test_overlapping_subspaces_leave_the_rest_of_the_span():
    bases = torch.stack([EYE[:, [0, 1]], EYE[:, [1, 2]], EYE[:, [2, 3]]])
    tasks = SubspaceTasks(6, subspaces=bases)
    V = tasks.direction("inside")
    torch.testing.assert_close(V.abs()[[0, 1, 4, 5]], torch.zeros(4, 2, dtype=torch.float64))


def test_tasks_of_any_precision_turn_the_same_way():
    tasks = SubspaceTasks(8, r=2, subspaces=2, seed=0)
    for toward in ("inside", "outside", "anywhere"):
        low = tasks.to(dtype=torch.float32).direction(toward)
        assert low.dtype == torch.float32
        assert float(Subspace.span(low.double()).distance(Subspace(tasks.direction(toward)))) < 1e-5


def test_prompts_are_cut():
    prompt = SubspaceTasks(3, r=1, seed=0).sample(2, n=5, seed=0)
    assert torch.equal(prompt.first(2).X, prompt.X[:, :2])
    assert torch.equal(prompt.first(2).yq, prompt.yq)
    with pytest.raises(DataError, match="n=6 exceeds the 5 examples"):
        prompt.first(6)


def test_given_bases_may_be_orthonormalized():
    crooked = torch.tensor([[2.0, 1.0], [0.0, 1.0], [0.0, 0.0]], dtype=torch.float64)
    tasks = SubspaceTasks(3, subspaces=crooked, orthonormalize=True)
    torch.testing.assert_close(
        tasks.covariance, torch.diag(torch.tensor([1.0, 1.0, 0.0], dtype=torch.float64))
    )
    with pytest.raises(DataError, match=r"not orthonormal .* orthonormalize=True"):
        SubspaceTasks(3, subspaces=crooked)
    flat = torch.ones(3, 2, dtype=torch.float64)
    with pytest.raises(RankError, match="linearly dependent"):
        SubspaceTasks(3, subspaces=flat, orthonormalize=True)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_rounding_is_no_reason_to_refuse(dtype):
    assert SubspaceTasks(300, r=40, seed=0, dtype=dtype).rotated(45).r == 40


@pytest.mark.parametrize(
    ("options", "error", "text"),
    [
        ({"d": 0}, DataError, "d=0 must be an integer >= 1"),
        ({"r": None}, DataError, "give r, the dimension"),
        ({"r": 7}, RankError, "r=7 dimensions do not fit into d=6"),
        ({"subspaces": 0}, DataError, "subspaces=0 must be an integer >= 1"),
        (
            {"subspaces": 2, "weights": [0.5, 0.6]},
            DataError,
            "must be probabilities: not negative, and with sum 1",
        ),
        ({"subspaces": 2, "weights": [1.5, -0.5]}, DataError, "must be probabilities"),
        ({"subspaces": 2, "weights": [1.0]}, ShapeError, r"weights have shape \(1,\), expected \(2,\)"),
        ({"noise": -0.1}, DataError, "noise=-0.1 must be a standard deviation >= 0"),
        ({"noise": float("nan")}, DataError, "noise=nan"),
        ({"family": "magic"}, DataError, "family='magic' is unknown"),
        ({"subspaces": EYE[:5, :2]}, ShapeError, r"subspaces have shape \(1, 5, 2\), expected \(k, 6, 2\)"),
        ({"subspaces": EYE[:, :3]}, ShapeError, "expected"),
        ({"subspaces": EYE[:, :2] * torch.nan}, DataError, "finite"),
        ({"inputs": -EYE}, DataError, "inputs has the negative eigenvalue -1"),
        ({"inputs": EYE[:3, :3]}, ShapeError, r"inputs has shape \(3, 3\), expected \(6, 6\)"),
        ({"inputs": EYE + EYE[0]}, DataError, "not symmetric"),
        ({"inputs": EYE, "family": "relu"}, DataError, "for linear functions only"),
    ],
)
def test_bad_tasks_are_refused(options, error, text):
    given = {"d": 6, "r": 2, "seed": 0, **options}
    with pytest.raises(error, match=text):
        SubspaceTasks(given.pop("d"), **given)


@pytest.mark.parametrize(
    ("angle", "toward", "error", "text"),
    [
        (-1, None, DataError, r"must lie in \[0, 90\] degrees"),
        (90.5, None, DataError, r"must lie in \[0, 90\] degrees"),
        (float("nan"), None, DataError, "must lie in"),
        ("steep", None, DataError, "is no angle"),
        ([1.0, 2.0, 3.0], None, ShapeError, "expected one angle or 2"),
        (45, "inside", RankError, "span no 2 directions beside the first one"),
        (45, "upward", DataError, "toward='upward' is unknown"),
        (45, EYE[:, :2], DataError, "must be orthogonal to the subspace that is turned"),
        (45, 2 * EYE[:, 2:4], DataError, "not orthonormal"),
        (45, EYE[:, 2:3], ShapeError, "expected"),
    ],
)
def test_bad_turns_are_refused(angle, toward, error, text):
    tasks = SubspaceTasks(6, subspaces=EYE[:, :2])
    with pytest.raises(error, match=text):
        tasks.rotated(angle, toward=toward)


def test_there_must_be_room_to_turn():
    with pytest.raises(RankError, match=r"needs 2 r <= d, got r=2 and d=3\. Lower r to 1, or raise d to 4"):
        SubspaceTasks(3, r=2, seed=0).rotated(10)
    with pytest.raises(RankError, match=r"span 4 of 5 dimensions; outside .* no room"):
        SubspaceTasks(5, r=2, subspaces=2, seed=0).rotated(10, toward="outside")


@pytest.mark.parametrize(("batch", "n"), [(0, 3), (3, 0), (3, 1.5)])
def test_empty_prompts_are_refused(batch, n):
    with pytest.raises(DataError, match="must be an integer >= 1"):
        SubspaceTasks(3, r=1, seed=0).sample(batch, n=n)


def test_it_shows_what_it_is():
    assert repr(SubspaceTasks(3, r=1, subspaces=2, noise=0.1, seed=0)) == (
        "SubspaceTasks(3, r=1, subspaces=2, noise=0.1, family='linear')"
    )
