import numpy as np
import pytest
import torch

from lowdim.algebra.seeds import gaussian
from lowdim.errors import DataError, ShapeError
from lowdim.phase import phase_distance, rwf
from lowdim.phase.wirtinger import spectral_start

REAL, COMPLEX = torch.float64, torch.complex128


def problem(seed=0, *, batch=(), m=120, n=16, dtype=REAL):
    generator = torch.Generator().manual_seed(seed)
    A, x = (gaussian(size, seed=generator, dtype=dtype) for size in ((*batch, m, n), (*batch, n)))
    return A, (A @ x.unsqueeze(-1)).squeeze(-1).abs(), x


@pytest.mark.parametrize(("dtype", "m"), [(REAL, 96), (COMPLEX, 128)])
def test_a_signal_is_found_from_enough_magnitudes(dtype, m):
    A, y, x = problem(dtype=dtype, m=m)
    assert float(phase_distance(rwf(A, y, max_iter=400), x)) < 1e-6 * float(x.norm())


def test_a_real_signal_is_found_from_complex_measurements():
    A, _, _ = problem(dtype=COMPLEX, m=96)
    x = gaussian((16,), seed=3, dtype=REAL)
    found = rwf(A, (A @ x.to(COMPLEX)).abs(), max_iter=400, real=True)
    assert found.dtype == REAL
    assert float(phase_distance(found, x)) < 1e-6


def test_the_start_points_to_the_signal_and_has_its_norm():
    A, y, x = problem(m=2000)
    start = spectral_start(A, y)
    assert float((start @ x).abs() / start.norm() / x.norm()) > 0.9
    assert float(start.norm() / x.norm()) == pytest.approx(1, abs=0.1)


def test_a_batch_is_its_items():
    A, y, _ = problem(batch=(4,), m=60)
    together = rwf(A, y)
    for k in range(4):
        torch.testing.assert_close(together[k], rwf(A[k], y[k]), atol=1e-12, rtol=1e-12)


def test_too_few_measurements_do_not_blow_up():
    A, y, x = problem(m=8)
    assert float(rwf(A, y, max_iter=500).norm()) < 100 * float(x.norm())


def test_magnitudes_of_zero_give_zero():
    A, y, _ = problem(batch=(2,))
    y[1] = 0
    found = rwf(A, y)
    assert float(found[1].abs().max()) == 0
    assert bool(torch.isfinite(found).all())


def test_numpy_in_numpy_out():
    A, y, _ = problem()
    found = rwf(A.numpy(), y.numpy())
    assert isinstance(found, np.ndarray)
    np.testing.assert_allclose(found, rwf(A, y).numpy())


def test_wrong_magnitudes_are_refused():
    A, y, _ = problem()
    with pytest.raises(DataError, match="negative or infinite"):
        rwf(A, -y)
    with pytest.raises(ShapeError, match="do not fit"):
        rwf(A, y[:-1])


def test_kinds_of_numbers_are_brought_together():
    A, y, _ = problem()
    assert rwf(A.float(), y).dtype == torch.float32
    assert isinstance(rwf(A.tolist(), y.tolist()), np.ndarray)
    assert rwf((10 * A).round().long(), y).dtype == REAL
    with pytest.raises(DataError, match="A must be finite"):
        rwf(A * float("nan"), y)
