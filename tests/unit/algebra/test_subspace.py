"""Exact small cases and refusals of Subspace."""

import dataclasses
import math

import pytest
import torch

from lowdim.algebra.subspace import Subspace
from lowdim.errors import DataError, LowdimWarning, RankError, ShapeError


def tilted(angles, n, dtype=torch.float64):
    """A pair of subspaces with the given principal angles."""
    r = len(angles)
    eye = torch.eye(n, dtype=dtype)
    angles = torch.tensor(angles, dtype=dtype)
    return Subspace(eye[:, :r]), Subspace(eye[:, :r] * angles.cos() + eye[:, r : 2 * r] * angles.sin())


def test_span_finds_the_numerical_rank():
    matrix = torch.tensor([[1.0, 2.0, 3.0], [0.0, 0.0, 0.0], [0.0, 1.0, 1.0]])
    space = Subspace.span(matrix)
    assert (space.n, space.r) == (3, 2)
    torch.testing.assert_close(space.project(matrix.mT), matrix.mT)


def test_span_by_rank_and_by_energy():
    matrix = torch.diag(torch.tensor([3.0, 2.0, 1.0], dtype=torch.float64))
    for space in (Subspace.span(matrix, rank=2), Subspace.span(matrix, energy=13 / 14)):
        torch.testing.assert_close(
            space.project(torch.ones(3).double()), torch.tensor([1.0, 1.0, 0.0]).double()
        )
    assert Subspace.span(matrix, energy=0.93).r == 3
    assert Subspace.span(matrix, energy=1.0).r == 3


def test_span_of_half_precision_is_single():
    assert Subspace.span(torch.randn(5, 2).bfloat16()).basis.dtype == torch.float32


def test_span_refusals():
    with pytest.raises(RankError, match=r"rank=4 is impossible for a 5 x 3"):
        Subspace.span(torch.randn(5, 3), rank=4)
    with pytest.raises(DataError, match="NaN"):
        Subspace.span(torch.full((3, 2), float("nan")))
    with pytest.raises(DataError, match="one of them"):
        Subspace.span(torch.randn(5, 3), rank=2, energy=0.5)
    with pytest.raises(DataError, match="no fraction"):
        Subspace.span(torch.randn(5, 3), energy=1.5)
    with pytest.raises(DataError, match="int64"):
        Subspace.span(torch.ones(3, 2, dtype=torch.int64))
    with pytest.raises(ShapeError, match=r"v\[:, None\]"):
        Subspace.span(torch.randn(3))
    batch = torch.stack([torch.eye(3), torch.diag(torch.tensor([1.0, 0, 0]))])
    with pytest.raises(RankError, match="1 to 3 dimensions"):
        Subspace.span(batch)


def test_span_beyond_the_numerical_rank_warns():
    with pytest.warns(LowdimWarning, match="span only 1"):
        space = Subspace.span(torch.ones(4, 3), rank=2)
    assert Subspace(space.basis).r == 2


def test_constructor_refuses_what_is_no_basis():
    with pytest.raises(DataError, match="not orthonormal"):
        Subspace(torch.ones(3, 2))
    with pytest.raises(DataError, match="not orthonormal"):
        Subspace(torch.full((3, 2), float("nan")))
    with pytest.raises(ShapeError, match="r <= n"):
        Subspace(torch.eye(3)[:2])
    with pytest.raises(DataError, match="coarse"):
        Subspace(torch.eye(3, dtype=torch.bfloat16))
    with pytest.raises(DataError, match="list"):
        Subspace([[1.0], [0.0]])


def test_value_semantics():
    space = Subspace.random(4, 2, seed=0)
    with pytest.raises(dataclasses.FrozenInstanceError):
        space.basis = torch.eye(4)
    with pytest.raises(TypeError, match="distance"):
        space == space  # noqa: B015
    with pytest.raises(TypeError):
        hash(space)
    assert repr(space) == "Subspace(n=4, r=2, dtype=torch.float32, device=cpu)"


def test_random_is_seeded_and_on_the_manifold():
    a, b = (Subspace.random(6, 3, batch=(2,), seed=7, dtype=torch.complex128) for _ in range(2))
    assert torch.equal(a.basis, b.basis)
    assert a.batch == (2,)
    Subspace(a.basis)
    c = Subspace.random(6, 3, seed=torch.Generator().manual_seed(7), dtype=torch.complex128, batch=(2,))
    assert torch.equal(a.basis, c.basis)
    assert not torch.equal(a.basis, Subspace.random(6, 3, batch=(2,), seed=8, dtype=torch.complex128).basis)
    with pytest.raises(RankError, match="r=7"):
        Subspace.random(6, 7)
    with pytest.raises(DataError, match="no seed"):
        Subspace.random(6, 2, seed="zero")


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("exponent", [0, 2, 4, 6])
def test_angles_are_accurate_over_the_whole_range(dtype, exponent):
    tiny = 10.0**-exponent
    expected = [tiny / 3, tiny / 2, math.pi / 4, math.pi / 2 - tiny / 2]
    a, b = tilted(expected, 9, dtype=dtype)
    error = (a.angles(b).double() - torch.tensor(expected, dtype=torch.float64).sort().values).abs().max()
    assert error <= 4 * torch.finfo(dtype).eps


def test_tiny_angles_keep_their_digits():
    a, b = tilted([1e-12, 3e-12], 6)
    torch.testing.assert_close(
        a.angles(b), torch.tensor([1e-12, 3e-12], dtype=torch.float64), rtol=1e-3, atol=0
    )


def test_angles_of_different_dimensions():
    eye = torch.eye(4, dtype=torch.float64)
    plane, line = Subspace(eye[:, :2]), Subspace((eye[:, 1:2] + eye[:, 2:3]) / math.sqrt(2))
    for angle in (plane.angles(line), line.angles(plane)):
        torch.testing.assert_close(angle, torch.tensor([math.pi / 4], dtype=torch.float64))


def test_distances_of_a_known_pair():
    s, t = 0.3, 1.1
    a, b = tilted([s, t], 5)
    expected = {
        "geodesic": math.hypot(s, t),
        "chordal": math.hypot(math.sin(s), math.sin(t)),
        "projection": math.sin(t),
        "spectral": 2 * math.sin(t / 2),
        "procrustes": 2 * math.hypot(math.sin(s / 2), math.sin(t / 2)),
    }
    for kind, value in expected.items():
        assert float(a.distance(b, kind=kind)) == pytest.approx(value, abs=1e-14)
    with pytest.raises(DataError, match="geodesic, chordal"):
        a.distance(b, kind="euclidean")


def test_dimension_mismatch_is_told():
    a, b, c = Subspace.random(5, 2, seed=0), Subspace.random(5, 3, seed=0), Subspace.random(6, 2, seed=0)
    for verb in ("distance", "geodesic", "log", "align"):
        with pytest.raises(ShapeError, match=r"2 in 5 and 3 in 5.*Subspace.angles"):
            getattr(a, verb)(b)
    with pytest.raises(ShapeError, match="2 in 5 and 2 in 6"):
        a.angles(c)
    with pytest.raises(DataError, match=r"\.to\("):
        a.angles(a.to(torch.float64))
    with pytest.raises(DataError, match="Tensor"):
        a.angles(a.basis)
    two, three = Subspace.random(5, 2, batch=(2,)), Subspace.random(5, 2, batch=(3,))
    with pytest.raises(ShapeError, match="do not broadcast"):
        two.distance(three)
    with pytest.raises(ShapeError, match=r"expected \(\.\.\., 5\)"):
        a.project(torch.ones(4))
    with pytest.raises(ShapeError, match="do not broadcast"):
        two.project(torch.ones(3, 5))
    with pytest.raises(ShapeError, match="tangent"):
        a.move(torch.ones(5, 3))


def test_trivial_and_full_subspaces():
    full = Subspace(torch.eye(3))
    nothing = full.complement()
    assert nothing.r == 0
    assert torch.equal(nothing.project(torch.ones(3)), torch.zeros(3))
    for kind in ("geodesic", "projection", "spectral"):
        assert float(nothing.distance(nothing, kind=kind)) == 0
    assert float(full.distance(Subspace.random(3, 3, seed=0))) < 1e-6
    assert nothing.move(torch.zeros(3, 0)).r == 0
    assert full.complement().complement().r == 3
    assert nothing.geodesic(nothing)(0.5).r == 0


def test_orthogonal_subspaces_have_a_geodesic():
    eye = torch.eye(4, dtype=torch.float64)
    a, b = Subspace(eye[:, :2]), Subspace(eye[:, 2:])
    curve = a.geodesic(b)
    assert float(curve(1.0).distance(b)) < 1e-14
    torch.testing.assert_close(curve(0.5).angles(a), torch.full((2,), math.pi / 4, dtype=torch.float64))


@pytest.mark.parametrize("scale", [1e-14, 1e-9, 1e-4, 1.0])
def test_geodesic_of_nearly_equal_subspaces(scale):
    a, b = tilted([0.0, scale / 2, scale], 8)
    curve = a.geodesic(b)
    torch.testing.assert_close(curve(1.0).angles(b), torch.zeros(3).double(), atol=1e-15, rtol=0)
    half = curve(0.5).angles(a)
    torch.testing.assert_close(
        half, torch.tensor([0.0, scale / 4, scale / 2]).double(), atol=1e-15, rtol=1e-6
    )


def test_to_keeps_the_columns_orthonormal():
    space = Subspace.random(50, 10, seed=0).to(torch.float64)
    gram = space.basis.mH @ space.basis
    assert float((gram - torch.eye(10)).abs().max()) < 1e-12
    assert space.to(torch.float32).basis.dtype == torch.float32


def test_many_small_moves_stay_on_the_manifold():
    space = Subspace.random(10, 3, seed=0)
    generator = torch.Generator().manual_seed(1)
    for _ in range(500):
        space = space.move(torch.randn(10, 3, generator=generator), step=0.3)
    assert float((space.basis.mH @ space.basis - torch.eye(3)).abs().max()) < 2e-6


def test_move_takes_one_step_per_item():
    space = Subspace.random(6, 2, batch=(3,), seed=0, dtype=torch.float64)
    tangent = space.log(Subspace.random(6, 2, batch=(3,), seed=1, dtype=torch.float64))
    moved = space.move(tangent, step=torch.tensor([0.0, 0.5, 1.0]))
    length = torch.linalg.matrix_norm(tangent)
    torch.testing.assert_close(space.distance(moved), length * torch.tensor([0.0, 0.5, 1.0]).double())


def test_gradients_flow_through_projection_and_distance():
    basis = Subspace.random(5, 2, seed=0, dtype=torch.float64).basis.requires_grad_()
    target = Subspace.random(5, 2, seed=1, dtype=torch.float64)
    loss = lambda q: (Subspace(q).distance(target, kind="chordal"), Subspace(q).project(target.basis.mT))  # noqa: E731
    assert torch.autograd.gradcheck(lambda m: loss(torch.linalg.qr(m).Q), (basis,))
