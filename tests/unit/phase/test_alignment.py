import numpy as np
import pytest
import torch

from lowdim.errors import ShapeError
from lowdim.phase import align, phase, phase_distance, relative_error, smooth_phases


def complex_frames(seed=0):
    return torch.randn(5, 3, 4, dtype=torch.complex128, generator=torch.Generator().manual_seed(seed))


def test_the_phase_of_zero_is_one():
    assert phase(torch.tensor([0.0, -3.0, 2.0])).tolist() == [1.0, -1.0, 1.0]
    z = torch.tensor([0j, 3 + 4j])
    torch.testing.assert_close(phase(z), torch.tensor([1 + 0j, 0.6 + 0.8j]))


def test_aligned_frames_are_the_nearest_ones():
    x, turns = complex_frames(), torch.tensor([1.0, 2.0, 3.0, 4.0, 5.0], dtype=torch.float64)
    turned = torch.polar(torch.ones_like(turns), turns).to(x.dtype)[:, None, None] * x
    torch.testing.assert_close(align(turned, x, dim=(1, 2)), x)
    assert float(phase_distance(turned, x, dim=(1, 2)).max()) < 1e-12
    assert relative_error(turned, x) < 1e-12


def test_no_other_factor_is_nearer():
    x, ref = complex_frames(0).flatten(1), complex_frames(1).flatten(1)
    best = phase_distance(x, ref)
    for angle in np.linspace(0, 6, 50):
        assert bool((torch.linalg.vector_norm(np.exp(1j * angle) * x - ref, dim=1) >= best - 1e-12).all())


def test_zero_has_a_relative_error_of_one():
    x = complex_frames()
    assert relative_error(torch.zeros_like(x), x) == pytest.approx(1)
    assert relative_error(x.numpy(), x.numpy()) < 1e-15


def test_smooth_phases_take_the_flicker_out():
    film = torch.ones(6, 2, 2, dtype=torch.complex128) + 0.1 * complex_frames()[:1, :2, :2]
    flicker = torch.polar(torch.ones(6, dtype=torch.float64), torch.arange(6, dtype=torch.float64) ** 2).to(
        film.dtype
    )[:, None, None]
    smooth = smooth_phases(flicker * film)
    torch.testing.assert_close(smooth, smooth[:1].expand(6, -1, -1))
    assert smooth.sum().real > 0
    assert abs(smooth.sum().imag) < 1e-12
    assert isinstance(smooth_phases(film.numpy()), np.ndarray)


def test_references_of_another_shape_are_refused():
    with pytest.raises(ShapeError, match="Give one reference for every signal"):
        align(torch.ones(2, 3), torch.ones(3, 2))
