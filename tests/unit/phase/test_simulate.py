"""Simulated recordings have the map, the noise and the outliers that were asked for."""

import numpy as np
import pytest
import torch

from lowdim.errors import BudgetError, DataError, ShapeError
from lowdim.phase import Recording, simulate
from lowdim.phase.single import matrix_of

Q, H, W = 6, 12, 10

MAPS = [
    ("gaussian", 0.5),
    ("complex-gaussian", 0.5),
    ("coded-diffraction", 0.5),
    ("coded-diffraction", 2.0),
    ("ptychography", 4.0),
]


@pytest.fixture(scope="module")
def film():
    return np.random.default_rng(0).random((Q, H, W))


@pytest.mark.parametrize(("kind", "ratio"), MAPS)
def test_magnitudes_are_those_of_the_map(film, kind, ratio):
    made = simulate(film, kind=kind, measurements=ratio)
    assert isinstance(made, Recording)
    assert made.ratio == pytest.approx(ratio, rel=0.35 if kind == "ptychography" else 0.01)
    np.testing.assert_array_equal(made.frames, film)
    for k in range(Q):
        A = matrix_of(made.measurement(), k).numpy()
        np.testing.assert_allclose(made.y[k], np.abs(A @ film[k].ravel()), atol=1e-12)


@pytest.mark.parametrize(("kind", "ratio"), MAPS)
def test_entries_have_a_mean_square_of_one(film, kind, ratio):
    A = matrix_of(simulate(film, kind=kind, measurements=ratio).measurement(), 0)
    seen = A[A != 0] if kind == "ptychography" else A
    assert float(seen.abs().square().mean()) == pytest.approx(1, abs=0.1)


@pytest.mark.parametrize(("kind", "ratio"), MAPS)
def test_the_seed_decides(film, kind, ratio):
    one, same, other = (simulate(film, kind=kind, measurements=ratio, seed=seed) for seed in (0, 0, 1))
    assert one.digest() == same.digest()
    assert one.digest() != other.digest()


def test_frames_have_maps_of_their_own_but_in_ptychography(film):
    dense = simulate(film)
    assert not np.allclose(dense.A[0], dense.A[1])
    coded = simulate(film, kind="coded-diffraction")
    assert coded.masks.shape == (Q, 2, H, W)
    assert coded.kept.shape == (Q, H * W // 2)
    assert (np.diff(coded.kept, axis=1) > 0).all()
    assert not np.array_equal(coded.kept[0], coded.kept[1])
    assert simulate(film, kind="ptychography", measurements=4).measurement().frames is None


def test_masks_are_octanary_or_phases(film):
    octanary = simulate(film, kind="coded-diffraction", measurements=3).masks
    assert octanary.shape[1] == 3
    moduli, counts = np.unique(np.abs(octanary).round(9), return_counts=True)
    np.testing.assert_allclose(moduli, [np.sqrt(0.5), np.sqrt(3)])
    assert counts[1] / counts.sum() == pytest.approx(0.2, abs=0.03)
    uniform = simulate(film, kind="coded-diffraction", masks="uniform").masks
    np.testing.assert_allclose(np.abs(uniform), 1)
    assert len(np.unique(np.angle(uniform).round(9))) > 100


@pytest.mark.parametrize("shape", [(12, 10), (10, 25), (30, 9), (4, 4)])
def test_ptychography_lights_every_pixel(shape):
    made = simulate(np.ones((2, *shape)), kind="ptychography", measurements=4)
    seen = torch.zeros(made.pixels, dtype=torch.bool)
    seen[made.measurement().pixels_seen] = True
    assert seen.float().mean() > 0.9
    assert made.ratio == pytest.approx(4, rel=0.6)


def test_noise_and_outliers_have_their_size(film):
    options = {"kind": "complex-gaussian", "measurements": 2}
    clean, noisy = simulate(film, **options), simulate(film, **options, noise=0.1)
    rms = np.sqrt(np.mean(clean.y**2))
    assert np.std(noisy.y - clean.y) == pytest.approx(0.1 * rms, rel=0.1)
    assert (noisy.y >= 0).all()
    wrong = simulate(film, **options, outliers=0.2)
    changed = wrong.y != clean.y
    assert changed.mean() == pytest.approx(0.2, abs=0.04)
    assert wrong.y[changed].max() <= 3 * rms
    assert wrong.y[changed].mean() == pytest.approx(1.5 * rms, rel=0.15)
    np.testing.assert_array_equal(clean.A, noisy.A)


def test_volumes_and_complex_frames_are_measured():
    rng = np.random.default_rng(0)
    assert simulate(rng.random((3, 4, 4, 2))).A.shape == (3, 16, 4, 4, 2)
    z = rng.normal(size=(3, 4, 4)) + 1j * rng.normal(size=(3, 4, 4))
    assert np.iscomplexobj(simulate(torch.as_tensor(z), kind="coded-diffraction").frames)


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"kind": "x-ray"}, DataError, "kind='x-ray' is unknown. Use one of gaussian"),
        ({"masks": "none"}, DataError, "masks='none' is unknown"),
        ({"measurements": 0}, DataError, "must be more than 0"),
        ({"measurements": float("nan")}, DataError, "must be more than 0"),
        ({"kind": "ptychography"}, DataError, "cannot light all pixels"),
        ({"noise": -1}, DataError, "noise=-1 must be a number >= 0"),
        ({"outliers": 1}, DataError, "outliers=1 must be a fraction"),
    ],
)
def test_options_that_are_refused(film, options, error, message):
    with pytest.raises(error) as caught:
        simulate(film, **options)
    assert message in str(caught.value)


def test_frames_that_are_refused():
    with pytest.raises(ShapeError, match="expected \\(frames, height, width\\)"):
        simulate(np.ones((3, 4)))
    with pytest.raises(ShapeError, match="expected \\(frames, height, width\\)"):
        simulate(np.ones((3, 4, 4, 2)), kind="coded-diffraction")
    with pytest.raises(DataError, match="NaN or infinite"):
        simulate(np.full((3, 4, 4), np.nan))
    with pytest.raises(DataError, match="expected numbers"):
        simulate(np.full((3, 4, 4), "a"))
    with pytest.raises(DataError, match="kind='complex-gaussian'"):
        simulate(np.ones((3, 4, 4)) * 1j)
    with pytest.raises(BudgetError, match="needs no matrix"):
        simulate(np.ones((50, 128, 128)))
