"""Laws of phase retrieval: adjoints, and what recovered frames may not depend on."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from lowdim.algebra.seeds import gaussian
from lowdim.phase import (
    CodedDiffraction,
    DenseMeasurement,
    Ptychography,
    TuckerPhaseRetrieval,
    relative_error,
)
from lowdim.phase.video import Video

SEEDS = st.integers(0, 2**16)


def phasors(*shape):
    angle = torch.rand(shape, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    return torch.polar(torch.ones_like(angle), 7 * angle)


MEASUREMENTS = {
    "dense": lambda: DenseMeasurement(gaussian((3, 7, 4, 5), seed=0, dtype=torch.float64)),
    "dense complex": lambda: DenseMeasurement(gaussian((3, 7, 4, 5), seed=0, dtype=torch.complex128)),
    "dense shared": lambda: DenseMeasurement(
        gaussian((7, 4, 5), seed=0, dtype=torch.complex128), image_shape=(4, 5)
    ),
    "dense color": lambda: DenseMeasurement(gaussian((3, 7, 4, 5, 2), seed=0, dtype=torch.float64)),
    "coded": lambda: CodedDiffraction(phasors(2, 4, 5)),
    "coded by frame": lambda: CodedDiffraction(phasors(3, 2, 4, 5)),
    "coded in part": lambda: CodedDiffraction(
        phasors(2, 4, 5), kept=torch.tensor([[0, 3, 39], [1, 1, 2], [7, 8, 9]])
    ),
    "ptychography": lambda: Ptychography(
        phasors(3, 2), torch.tensor([[0, 0], [1, 3], [1, 2]]), image_shape=(4, 5)
    ),
}


@pytest.mark.parametrize("name", MEASUREMENTS)
@settings(max_examples=10, deadline=None)
@given(seed=SEEDS)
def test_the_adjoint_is_the_adjoint(name, seed):
    A = MEASUREMENTS[name]()
    x = gaussian((2, 3, *A.image_shape), seed=seed, dtype=A.dtype)
    c = gaussian((2, 3, A.samples), seed=seed + 1, dtype=A.dtype)
    assert A.forward(x).shape == c.shape
    assert A.adjoint(c).shape == x.shape
    left, right = (
        torch.vdot(c.flatten(), A.forward(x).flatten()),
        torch.vdot(A.adjoint(c).flatten(), x.flatten()),
    )
    torch.testing.assert_close(left, right)


@pytest.mark.parametrize("name", MEASUREMENTS)
def test_a_batch_is_its_items(name):
    A = MEASUREMENTS[name]()
    x = gaussian((4, 3, *A.image_shape), seed=1, dtype=A.dtype)
    torch.testing.assert_close(A.forward(x), torch.stack([A.forward(item) for item in x]))
    c = gaussian((4, 3, A.samples), seed=2, dtype=A.dtype)
    torch.testing.assert_close(A.adjoint(c), torch.stack([A.adjoint(item) for item in c]))


def problem(seed, *, samples=84):
    generator = torch.Generator().manual_seed(seed)
    draw = lambda *size: gaussian(size, seed=generator, dtype=torch.float64)  # noqa: E731
    X = Video(draw(2, 2, 2), [draw(7, 2), draw(6, 2)], draw(15, 2)).frames()
    A = draw(15, samples, 7, 6)
    return A, torch.einsum("kmij,kij->km", A, X).abs()


def fitted(A, y, **options):
    return TuckerPhaseRetrieval((2, 2, 2), **{"n_init": 1, "max_iter": 40, **options}).fit(A, y).frames_


@settings(max_examples=5, deadline=None)
@given(seed=SEEDS, factor=st.sampled_from([1e-3, 0.5, 1e4]))
def test_magnitudes_in_another_unit_give_frames_in_that_unit(seed, factor):
    A, y = problem(seed)
    assert relative_error(fitted(A, factor * y), factor * fitted(A, y)) < 1e-5


@settings(max_examples=5, deadline=None)
@given(seed=SEEDS)
def test_the_order_of_measurements_and_signs_of_rows_do_not_matter(seed):
    A, y = problem(seed)
    generator = torch.Generator().manual_seed(seed)
    order = torch.randperm(A.shape[1], generator=generator)
    signs = torch.sign(torch.randn(A.shape[:2], generator=generator, dtype=A.dtype))
    other = fitted((signs[..., None, None] * A)[:, order], y[:, order])
    assert relative_error(other, fitted(A, y)) < 1e-5


@settings(max_examples=5, deadline=None)
@given(seed=SEEDS)
def test_the_order_of_the_frames_does_not_matter(seed):
    A, y = problem(seed)
    order = torch.randperm(len(A), generator=torch.Generator().manual_seed(seed))
    one, other = fitted(A[order], y[order], n_init=8), fitted(A, y, n_init=8)[order]
    assert relative_error(one, other) < 1e-5


@settings(max_examples=5, deadline=None)
@given(seed=SEEDS)
def test_a_weight_of_zero_is_as_good_as_no_measurement(seed):
    A, y = problem(seed, samples=90)
    weights = torch.ones_like(y)
    weights[:, 84:] = 0
    y[:, 84:] = 0  # intensities enter the common start by their mean
    model = TuckerPhaseRetrieval((2, 2, 2), n_init=1, max_iter=40)
    some = model.fit(A[:, :84], y[:, :84]).loss_[-1]
    assert abs(model.fit(A, y, sample_weight=weights).loss_[-1] - some) < 1e-6


@settings(max_examples=3, deadline=None)
@given(seed=SEEDS)
def test_parts_of_the_frames_give_what_all_at_once_do(seed):
    A, y = problem(seed)
    assert relative_error(fitted(A, y, chunk_bytes=1), fitted(A, y)) < 1e-5


def test_a_seed_repeats_itself():
    A, y = problem(0)
    one, other = (fitted(A, y, init="random", n_init=3, random_state=7) for _ in range(2))
    assert torch.equal(one, other)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_a_gpu_finds_the_same():
    A, y = problem(0)
    assert relative_error(fitted(A.cuda(), y.cuda()).cpu(), fitted(A, y)) < 1e-5
