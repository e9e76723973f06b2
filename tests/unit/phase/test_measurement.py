import pytest
import torch

from lowdim.errors import ShapeError
from lowdim.phase import (
    CodedDiffraction,
    DeepinvMeasurement,
    Ptychography,
    TuckerPhaseRetrieval,
    relative_error,
)
from lowdim.phase.video import Video


def unit_masks(*shape, seed=0):
    angles = torch.rand(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    return torch.polar(torch.ones_like(angles), 2 * torch.pi * angles)


def film(frames=12, shape=(8, 8), ranks=(2, 2, 2), dtype=torch.float64, seed=0):
    generator = torch.Generator().manual_seed(seed)
    draw = lambda *size: torch.randn(*size, generator=generator, dtype=dtype)  # noqa: E731
    factors = [draw(n, r) for n, r in zip((*shape, frames), ranks, strict=True)]
    return Video(draw(*ranks), factors[:-1], factors[-1]).frames()


def test_coded_diffraction_is_the_transform_behind_each_mask():
    masks, x = unit_masks(2, 4, 5), film(3, (4, 5))
    A = CodedDiffraction(masks)
    expected = torch.stack([torch.fft.fft2(mask * x) for mask in masks], 1)
    torch.testing.assert_close(A.forward(x), expected.flatten(1))
    kept = torch.tensor([[0, 7], [1, 39], [5, 5]])
    some = CodedDiffraction(masks, kept=kept)
    torch.testing.assert_close(some.forward(x), expected.flatten(1).gather(1, kept))
    assert (some.samples, some.frames) == (2, 3)


def test_ptychography_is_the_transform_of_what_the_probe_sees():
    probe, x = unit_masks(3, 4), film(2, (6, 7))
    positions = torch.tensor([[0, 0], [3, 3], [1, 2]])
    found = Ptychography(probe, positions, image_shape=(6, 7)).forward(x)
    expected = [torch.fft.fft2(probe * x[:, r : r + 3, c : c + 4]).flatten(1) for r, c in positions.tolist()]
    torch.testing.assert_close(found, torch.cat(expected, 1))


def test_a_video_is_found_behind_masks_at_half_the_measurements():
    X = film()
    generator = torch.Generator().manual_seed(3)
    kept = torch.stack([torch.randperm(64, generator=generator)[:40] for _ in range(12)])
    A = CodedDiffraction(unit_masks(12, 1, 8, 8), kept=kept)
    model = TuckerPhaseRetrieval((2, 2, 2), real=True, n_init=8).fit(A, A.magnitudes(X))
    assert relative_error(model.frames_, X) < 1e-6


def test_a_video_is_found_by_ptychography():
    X = film(dtype=torch.complex128)
    corners = torch.cartesian_prod(torch.arange(0, 5, 1), torch.arange(0, 5, 1))
    A = Ptychography(unit_masks(4, 4), corners, image_shape=(8, 8))
    model = TuckerPhaseRetrieval((2, 2, 2), n_init=2).fit(A, A.magnitudes(X))
    assert relative_error(model.frames_, X) < 1e-3


class Physics:
    """Stands for a physics of deepinv: images (batch, channel, height, width), intensities out."""

    def __init__(self):
        self.matrix = torch.randn(256, 64, dtype=torch.complex64, generator=torch.Generator().manual_seed(0))

    def B(self, x):  # noqa: N802
        return x.flatten(1) @ self.matrix.T

    def B_adjoint(self, y):  # noqa: N802
        return (y @ self.matrix.conj()).reshape(-1, 1, 8, 8)


def test_a_physics_is_taken_by_its_linear_part():
    X = film().float()
    intensities = Physics().B(X.unsqueeze(1).to(torch.complex64)).abs().square()
    model = TuckerPhaseRetrieval((2, 2, 2), real=True).fit(
        Physics(), intensities, image_shape=(8, 8), intensity=True
    )
    assert relative_error(model.frames_, X) < 1e-3
    with pytest.raises(ShapeError, match="does not take images of \\(9, 9\\)"):
        DeepinvMeasurement(Physics(), image_shape=(9, 9))
    with pytest.raises(ShapeError, match="image_shape must be given"):
        TuckerPhaseRetrieval((2, 2, 2)).fit(Physics(), intensities)


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda: CodedDiffraction(torch.ones(4, 4)), "expected \\(masks, height, width\\)"),
        (lambda: CodedDiffraction(torch.ones(1, 2, 2), kept=torch.tensor([4])), "from 0 to 3"),
        (lambda: CodedDiffraction(torch.ones(1, 2, 2), kept=torch.tensor([0.5])), "whole numbers"),
        (
            lambda: CodedDiffraction(torch.ones(3, 1, 2, 2), kept=torch.zeros(2, 1, dtype=torch.int64)),
            "masks are of 3 frames, kept of 2",
        ),
        (
            lambda: Ptychography(torch.ones(3, 3), torch.tensor([[4, 0]]), image_shape=(6, 6)),
            "leaves an image",
        ),
        (
            lambda: Ptychography(torch.ones(3), torch.tensor([[4, 0]]), image_shape=(6, 6)),
            "expected \\(a, b\\)",
        ),
    ],
)
def test_operators_that_do_not_fit_are_refused(build, message):
    with pytest.raises(ShapeError, match=message):
        build()
