import numpy as np
import pandas as pd
import pytest
import torch
from planted import distance, planted

from lowdim.errors import DataError, LowdimWarning, RankError, RunError, ShapeError
from lowdim.track import Curve, GeodesicSubspace
from lowdim.track.curve import polar
from lowdim.track.majorize import descend
from lowdim.track.observations import Masked, Sampled
from lowdim.track.static import alternate, start_curve


def test_the_curve_starts_at_h_turns_and_stays_orthonormal():
    curve, t, _ = planted(0)
    U = curve.basis(t)
    eye = torch.eye(2, dtype=torch.float64)
    torch.testing.assert_close(U.mT @ U, eye.expand(60, -1, -1))
    torch.testing.assert_close(U[0], curve.H)
    angles = curve.subspace(t[:1]).angles(curve.subspace(t[-1:]))
    torch.testing.assert_close(angles[0].sort().values, curve.theta.sort().values)


def test_sorting_a_curve_changes_no_subspace():
    curve, t, _ = planted(1, k=3)
    twisted = Curve(curve.Q, curve.theta * torch.tensor([-1.0, 1.0, -1.0], dtype=torch.float64))
    ordered = twisted.sorted()
    assert (ordered.theta >= 0).all()
    assert (ordered.theta.diff() <= 0).all()
    assert float(twisted.subspace(t).distance(ordered.subspace(t)).max()) < 1e-7


@pytest.mark.parametrize("dtype", [torch.float64, torch.complex128])
def test_the_polar_factor_is_the_nearest_orthonormal_matrix(dtype):
    M = torch.randn(20, 4, dtype=dtype, generator=torch.Generator().manual_seed(0))
    W, _, V = torch.linalg.svd(M, full_matrices=False)
    torch.testing.assert_close(polar(M), W @ V)
    flat = torch.cat([M[:, :3], M[:, :1]], dim=1)  # of rank 3: any completion will do
    Q = polar(flat)
    torch.testing.assert_close(Q.mH @ Q, torch.eye(4, dtype=dtype))


@pytest.mark.parametrize("missing", [0.0, 0.5])
@pytest.mark.parametrize("dtype", [torch.float64, torch.complex128])
@pytest.mark.parametrize("kind", ["static", "svd", "random"])
def test_without_acceleration_no_iteration_increases_the_objective(missing, dtype, kind):
    # Unequal times, duplicates, and 0 among them.
    times = torch.rand(40, dtype=torch.float64, generator=torch.Generator().manual_seed(2)).sort().values
    times[:2], times[10:13] = 0.0, times[10]
    _, t, X = planted(3, frames=40, missing=missing, dtype=dtype, t=times)
    seen = torch.as_tensor(~np.isnan(X))
    data = Masked(torch.as_tensor(np.nan_to_num(X)), seen if missing else None)
    start = start_curve(data, t, 2, kind=kind, source=torch.Generator().manual_seed(0))
    found = descend(data, t, start, steps=60, tol=0, accelerate=False)
    falls = -np.diff(found.history.objective)
    assert falls.min() >= -1e-10 * found.history.objective[0]
    assert found.history.objective[-1] < 0.9 * found.history.objective[0]


def test_complete_noiseless_frames_are_explained_exactly():
    times = torch.linspace(0, 1, 40, dtype=torch.float64) + 0.001
    curve, t, X = planted(0, d=40, frames=40, noise=0, t=times)
    model = GeodesicSubspace(2).fit(X, t=t.numpy())
    assert model.loss_ < 1e-20 * np.square(X).sum()
    assert model.n_iter_ < 300
    assert distance(model.basis(), curve, t) < 1e-12
    np.testing.assert_allclose(model.theta_, curve.theta.sort(descending=True).values * 1.0, rtol=1e-6)


@pytest.mark.parametrize(("missing", "bound"), [(0.0, 0.001), (0.4, 0.003)])
def test_the_planted_curve_is_found(missing, bound):
    curve, t, X = planted(4, missing=missing)
    model = GeodesicSubspace(2).fit(X)
    assert distance(model.basis(), curve, t) < bound
    whole = planted(4, missing=0.0)[2]
    filled = model.impute(X)
    gaps = np.isnan(X)
    np.testing.assert_array_equal(filled[~gaps], X[~gaps])
    if missing:
        error = np.sqrt(np.mean((filled - whole)[gaps] ** 2))
        assert error < 0.2 * np.sqrt(np.mean(whole[gaps] ** 2))


def test_coefficients_belong_to_the_basis():
    _, _, X = planted(5, missing=0.3)
    model = GeodesicSubspace(2).fit(X)
    np.testing.assert_allclose(model.transform(X), model.coefficients_, atol=1e-10)
    direct = np.einsum("tdk,tk->td", model.basis(), model.coefficients_)
    np.testing.assert_allclose(model.inverse_transform(model.coefficients_), direct, atol=1e-12)
    gaps = np.isnan(X)
    np.testing.assert_allclose(model.impute(X)[gaps], direct[gaps], atol=1e-10)
    assert model.loss_ == pytest.approx(np.square((direct - X)[~gaps]).sum())


def test_times_may_be_dates_in_any_order_and_unit():
    curve, t, X = planted(6, missing=0.2)
    model = GeodesicSubspace(2).fit(X)
    dates = pd.date_range("2020-01-01", periods=60, freq="D")
    shuffled = np.random.default_rng(0).permutation(60)
    dated = GeodesicSubspace(2).fit(X[shuffled], t=dates[shuffled])
    assert distance(dated.basis(dates), curve, t) == pytest.approx(
        distance(model.basis(), curve, t), rel=1e-3
    )
    np.testing.assert_allclose(dated.theta_, model.theta_, rtol=1e-4)
    assert model.basis(7.5).shape == (30, 2)


def test_frames_may_share_a_time_and_some_may_be_empty():
    _, _, X = planted(7, missing=0.3)
    X[10] = np.nan
    t = np.repeat(np.arange(30), 2)
    model = GeodesicSubspace(2).fit(X, t=t)
    assert (model.coefficients_[10] == 0).all()
    assert np.isfinite(model.impute(X)).all()


def test_a_mask_hides_like_nan():
    _, _, X = planted(8, missing=0.3)
    mask = ~np.isnan(X)
    values = np.where(mask, X, 1e9)
    one, other = GeodesicSubspace(2).fit(X), GeodesicSubspace(2).fit(values, mask=mask)
    np.testing.assert_array_equal(one.H_, other.H_)
    np.testing.assert_array_equal(one.transform(X), other.transform(values, mask=mask))


def test_single_precision_follows_double():
    curve, t, X = planted(9, missing=0.3)
    model = GeodesicSubspace(2).fit(X.astype(np.float32))
    assert model.H_.dtype == np.float32
    assert distance(model.basis(), curve, t) == pytest.approx(
        distance(GeodesicSubspace(2).fit(X).basis(), curve, t), rel=0.05
    )


def test_linear_maps_of_the_frames_are_enough():
    curve, t, X = planted(10, noise=0.0)
    A = np.random.default_rng(0).normal(size=(60, 12, 30)) / np.sqrt(12)
    y = np.einsum("tmd,td->tm", A, X)
    model = GeodesicSubspace(2).fit_samples(y, A)
    assert distance(model.basis(), curve, t) < 1e-4
    tensor = torch.as_tensor(A)
    functions = (
        lambda x: torch.einsum("tmd,td->tm", tensor, x),
        lambda y: torch.einsum("tmd,tm->td", tensor, y),
    )
    same = GeodesicSubspace(2).fit_samples(y, functions, n_features=30)
    np.testing.assert_allclose(same.theta_, model.theta_)


def test_a_mask_as_a_linear_map_gives_the_same_terms():
    _, _, X = planted(11, missing=0.4, frames=10)
    seen = torch.as_tensor(~np.isnan(X))
    y = torch.as_tensor(np.nan_to_num(X))
    masked = Masked(y, seen)
    sampled = Sampled(y, lambda x: x * seen, lambda x: x * seen, 30)
    Q = torch.linalg.qr(torch.randn(30, 4, dtype=torch.float64))[0]
    for one, other in zip(masked.normal(Q), sampled.normal(Q), strict=True):
        torch.testing.assert_close(one, other)
    F = torch.randn(10, 30, dtype=torch.float64)
    torch.testing.assert_close(masked.complete(F)[1], sampled.complete(F)[1])


def test_several_starts_keep_the_best_and_tell_the_spread():
    _, _, X = planted(12, missing=0.3)
    model = GeodesicSubspace(2, n_init=3, random_state=0).fit(X)
    assert 0 <= model.spread_ < 1e-3
    assert GeodesicSubspace(2).fit(X).spread_ is None


def test_a_subspace_at_rest_is_left_at_rest():
    rng = np.random.default_rng(0)
    U = np.linalg.qr(rng.normal(size=(30, 2)))[0]
    X = rng.normal(size=(60, 2)) @ U.T
    X[rng.random(X.shape) < 0.3] = np.nan
    found = GeodesicSubspace(2).fit(X)
    assert found.theta_.max() < 1e-3
    data = Masked(torch.as_tensor(np.nan_to_num(X)), torch.as_tensor(~np.isnan(X)))
    basis, _, loss = alternate(data, 2, ridge=1e-9)
    assert loss < 1e-10
    assert 1 - np.square(basis.numpy().T @ U).sum() / 2 < 1e-10


@pytest.mark.parametrize("dtype", [torch.float64, torch.complex128])
def test_saved_models_come_back_equal(tmp_path, dtype):
    _, _, X = planted(13, missing=0.3, dtype=dtype)
    model = GeodesicSubspace(2, ridge=1e-2).fit(X, t=np.arange(60) + 1900)
    model.save(tmp_path / "m")
    again = GeodesicSubspace.load(tmp_path / "m")
    assert again.get_params() == model.get_params()
    np.testing.assert_array_equal(again.impute(X), model.impute(X))
    np.testing.assert_array_equal(again.basis(1950.0), model.basis(1950.0))
    header = tmp_path / "m" / "model.json"
    header.write_text(header.read_text().replace('"format": 1', '"format": 99'))
    with pytest.raises(RunError, match=r"has format 99.*fit again"):
        GeodesicSubspace.load(tmp_path / "m")
    with pytest.raises(RunError, match=r"holds no model\.json"):
        GeodesicSubspace.load(tmp_path)


def test_bad_input_is_refused_at_the_door():
    X = planted(0)[2]
    broken = X.copy()
    broken[3, 4] = np.inf
    cases = [
        (RankError, r"n_components=16 is too large.*two directions per component.*at most 15", 16, X, {}),
        (RankError, r"n_components=0 must be a positive integer", 0, X, {}),
        (ShapeError, r"n_samples=1 rows, expected at least 2", 1, X[:1], {}),
        (ShapeError, r"expected a 2D array.*Reshape your data", 1, X[0], {}),
        (ShapeError, r"60 rows need as many times, got an array of shape \(3,\)", 1, X, {"t": [0, 1, 2]}),
        (DataError, r"the time of row 5 is missing", 1, X, {"t": np.r_[0:5.0, np.nan, 6:60]}),
        (DataError, r"times must be numbers or dates", 1, X, {"t": ["a"] * 60}),
        (DataError, r"same time, so nothing can move.*PCA", 1, X, {"t": np.ones(60)}),
        (DataError, r"X\[3, 4\] is infinity", 1, broken, {}),
        (DataError, r"every entry is missing", 1, X * np.nan, {}),
        (DataError, r"X\[0, 0\] is NaN where the mask says", 1, X * np.nan, {"mask": X == X}),
        (ShapeError, r"mask must be a boolean array of shape \(60, 30\)", 1, X, {"mask": np.ones(60)}),
        (DataError, r"does not hold numbers", 1, np.full((9, 9), "a"), {}),
    ]
    for kind, match, k, data, options in cases:
        with pytest.raises(kind, match=match):
            GeodesicSubspace(k).fit(data, **options)
    for options in ({"init": "zero"}, {"max_iter": 0}, {"n_init": 0}, {"ridge": -1}):
        with pytest.raises(DataError, match=next(iter(options))):
            GeodesicSubspace(1, **options).fit(X)
    model = GeodesicSubspace(1).fit(X)
    with pytest.raises(ShapeError, match=r"3 rows, but the model was fitted to 60.*t=\.\.\."):
        model.transform(X[:3])
    with pytest.raises(ShapeError, match=r"expected \(T, 1\) coefficients"):
        model.inverse_transform(X)
    with pytest.raises(ShapeError, match=r"Add n_features"):
        model.fit_samples(X, (lambda x: x, lambda x: x))
    with pytest.raises(ShapeError, match=r"operators must be \(T, m, d\)"):
        model.fit_samples(X, np.ones((60, 3, 30)))


def test_what_is_risky_is_told():
    X = planted(0, missing=0.0)[2]
    thin = X.copy()
    thin[np.random.default_rng(0).random(X.shape) < 0.85] = np.nan
    with pytest.warns(LowdimWarning, match=r"observed entries for \d+ unknowns"):
        GeodesicSubspace(3, max_iter=5).fit(thin)
    long = planted(0, frames=400)[2]
    long[np.random.default_rng(0).random(long.shape) < 0.85] = np.nan
    with pytest.warns(LowdimWarning, match=r"fewer than 6 observed entries.*larger ridge"):
        GeodesicSubspace(2, max_iter=5).fit(long)
    model = GeodesicSubspace(2, max_iter=5).fit(X, t=np.arange(60))
    with pytest.warns(LowdimWarning, match=r"outside the fitted interval"):
        model.basis(80)
    # Seen often enough in the beginning that its speed is known, and then not for more than half a turn.
    angle = 3.0 * np.r_[np.linspace(0, 0.3, 12), 1.0]
    fast = np.cos(angle)[:, None] * np.eye(4)[0] + np.sin(angle)[:, None] * np.eye(4)[1]
    with pytest.warns(LowdimWarning, match=r"turns by more than 90 degrees between two neighboring"):
        GeodesicSubspace(1, n_init=10, random_state=0).fit(fast, t=angle)


# ----- averages over draws ----------------------------------------------------------------------------


def test_draws_of_frames_that_say_almost_everything_agree_with_the_fit():
    curve, t, X = planted(5, d=12, k=1, frames=40, missing=0.3, noise=1e-3)
    plain = GeodesicSubspace(1).fit(X, t=t.numpy())
    model = GeodesicSubspace(1, draws=5, random_state=0).fit(X, t=t.numpy())
    assert distance(model.basis(), Curve(plain.curve_.Q, plain.curve_.theta), t) < 1e-5
    assert distance(model.basis(), curve, t) < 1e-5
    assert model.uncertainty_.shape == (40,)
    assert 0 < model.uncertainty_.max() < 1e-4
    assert model.loss_ >= plain.loss_ * (1 - 1e-6)


def test_an_average_over_draws_is_nearer_where_little_is_seen_and_knows_how_near():
    errors, told = [], []
    for seed in range(4):
        curve, t, X = planted(seed, d=20, k=1, frames=50, missing=0.85)
        plain = GeodesicSubspace(1, ridge=1e-2).fit(X, t=t.numpy())
        model = GeodesicSubspace(1, ridge=1e-2, draws=5, random_state=0).fit(X, t=t.numpy())
        errors.append((distance(model.basis(), curve, t), distance(plain.basis(), curve, t)))
        told.append(model.uncertainty_.mean())
    averaged, best = np.mean(errors, axis=0)
    assert averaged < 0.9 * best
    assert averaged / 3 < np.mean(told) < 3 * averaged


def test_the_seed_decides_the_draws(tmp_path):
    _, t, X = planted(6, d=12, k=1, frames=20, missing=0.5)
    one, same, other = (
        GeodesicSubspace(1, ridge=1e-2, draws=1, random_state=seed).fit(X, t=t.numpy()).theta_
        for seed in (0, 0, 1)
    )
    assert one == same
    assert one != other
    model = GeodesicSubspace(1, ridge=1e-2, draws=1, random_state=0).fit(X, t=t.numpy())
    model.save(tmp_path / "model")
    loaded = GeodesicSubspace.load(tmp_path / "model")
    np.testing.assert_array_equal(loaded.uncertainty_, model.uncertainty_)


def test_draws_are_for_real_frames_with_gaps():
    _, t, X = planted(7, d=8, k=1, frames=10, dtype=torch.complex128)
    with pytest.raises(DataError, match="draws=3 are for real frames"):
        GeodesicSubspace(1, draws=3).fit(X, t=t.numpy())
    with pytest.raises(DataError, match="draws=-1 must be at least 0"):
        GeodesicSubspace(1, draws=-1).fit(X.real, t=t.numpy())
