"""TensorRegressor: what it finds, what it accepts, and what it refuses, by the message."""

import numpy as np
import pandas as pd
import pytest
import torch
from drawn import error, regression
from sklearn.base import clone
from sklearn.exceptions import ConvergenceWarning, NotFittedError
from sklearn.model_selection import GridSearchCV
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from lowdim.errors import DataError, LowdimWarning, RankError, ShapeError
from lowdim.regress import TensorRegressor


@pytest.fixture(scope="module")
def data():
    return regression((6, 5), 2, 150, noise=0.05)


@pytest.mark.parametrize("form", ["cp", "tucker"])
def test_it_finds_planted_coefficients(data, form):
    X, y, W = data
    model = TensorRegressor(2, decomposition=form).fit(X, y)
    assert model.coef_.shape == model.shape_ == (6, 5)
    assert error(model.coef_, W) < 0.03
    assert model.score(X, y) > 0.99
    assert model.n_parameters_ == (22 if form == "cp" else 26)
    assert model.n_features_in_ == 30
    rebuilt = model.factors_[0] @ model.factors_[1].T
    if form == "tucker":
        rebuilt = model.factors_[0] @ model.core_ @ model.factors_[1].T
    np.testing.assert_allclose(rebuilt, model.coef_)
    np.testing.assert_allclose(model.predict(X), model.intercept_ + np.tensordot(X, model.coef_, 2))


def test_flat_samples_with_a_shape_are_the_same(data):
    X, y, _ = data
    one = TensorRegressor(2).fit(X, y)
    other = TensorRegressor(2, shape=(6, 5)).fit(X.reshape(150, 30), y)
    np.testing.assert_array_equal(one.coef_, other.coef_)
    np.testing.assert_array_equal(one.predict(X.reshape(150, 30)[:3]), other.predict(X[:3]))


def test_lists_and_whole_numbers_are_accepted():
    X, y, _ = regression((3, 2), 1, 40)
    whole = np.round(10 * X).astype(int)
    one = TensorRegressor(1).fit(whole.tolist(), y.tolist())
    other = TensorRegressor(1).fit(whole.astype(float), y)
    np.testing.assert_array_equal(one.coef_, other.coef_)


def test_several_targets_have_factors_of_their_own(data):
    X, y, _ = data
    Y = np.stack([y, np.roll(y, 1), -y], 1)
    model = TensorRegressor(2, decomposition="tucker").fit(X, Y)
    assert model.coef_.shape == (3, 6, 5)
    assert model.predict(X).shape == (150, 3)
    assert len(model.factors_) == len(model.core_) == 3
    assert model.n_parameters_ == 3 * 26
    assert TensorRegressor(2).fit(X, Y[:, :1]).predict(X).shape == (150, 1)


@pytest.mark.parametrize("kind", ["array", "rows", "list", "map", "tensor"])
def test_a_mask_hides_what_is_no_number(data, tmp_path, kind):
    X, y, _ = data
    mask = np.arange(30).reshape(6, 5) % 4 > 0
    np.save(tmp_path / "x.npy", np.where(mask, X, np.nan))
    hollow = np.load(tmp_path / "x.npy", mmap_mode="r" if kind == "map" else None)
    given = {"rows": lambda a: a.reshape(len(a), -1), "list": np.ndarray.tolist, "tensor": torch.as_tensor}
    made = given.get(kind, lambda a: a)
    model = TensorRegressor(1, mask=mask).fit(made(hollow), y)
    plain = TensorRegressor(1, mask=mask).fit(X, y)
    np.testing.assert_allclose(model.coef_, plain.coef_, rtol=1e-8)
    np.testing.assert_allclose(model.predict(made(hollow)), plain.predict(X))
    inside = np.array(hollow)
    inside[(4, *np.argwhere(mask)[0])] = np.inf
    with pytest.raises(DataError, match="contains NaN or infinity"):
        TensorRegressor(1, mask=mask).fit(made(inside), y)
    with pytest.raises(DataError, match="contains NaN or infinity"):
        model.predict(made(inside))


def test_a_mask_leaves_places_out():
    rng = np.random.default_rng(0)
    mask = rng.random((6, 5)) < 0.7
    X, _, W = regression((6, 5), 1, 200)
    X = X * mask
    y = 1 + np.tensordot(X, W, 2)
    inside = TensorRegressor(1, mask=mask, alpha=1e-8).fit(X[:, mask], y)
    whole = TensorRegressor(1, mask=mask, alpha=1e-8).fit(X, y)
    np.testing.assert_allclose(inside.coef_, whole.coef_)
    assert not inside.coef_[~mask].any()
    assert error(inside.coef_, W * mask) < 1e-3
    assert inside.n_features_in_ == mask.sum()
    np.testing.assert_allclose(inside.predict(X[:, mask]), y, atol=0.01)
    np.testing.assert_allclose(whole.predict(X), inside.predict(X[:, mask]))
    noisy = X + 5 * ~mask  # what the mask hides is never looked at
    np.testing.assert_allclose(whole.predict(noisy), whole.predict(X))


def test_without_intercept(data):
    X, y, _ = data
    model = TensorRegressor(2, fit_intercept=False).fit(X - 0.5, y - 3)
    assert model.intercept_ == 0
    assert model.score(X - 0.5, y - 3) > 0.98


def test_it_works_in_a_pipeline_and_a_grid_search(data):
    X, y, _ = data
    pipe = make_pipeline(StandardScaler(), TensorRegressor(shape=(6, 5)))
    grid = {"tensorregressor__rank": [1, 2], "tensorregressor__alpha": [1e-4, 1.0]}
    search = GridSearchCV(pipe, grid, cv=3).fit(X.reshape(150, 30), y)
    assert search.best_params_ == {"tensorregressor__rank": 2, "tensorregressor__alpha": 1e-4}
    table = pd.DataFrame(X.reshape(150, 30), columns=[f"p{i}" for i in range(30)])
    named = TensorRegressor(2, shape=(6, 5)).fit(table, y)
    assert list(named.feature_names_in_) == list(table.columns)


def test_tensors_are_answered_with_tensors(data):
    X, y, _ = data
    plain = TensorRegressor(2).fit(X, y)
    model = TensorRegressor(2).fit(torch.as_tensor(X), torch.as_tensor(y))
    np.testing.assert_allclose(model.coef_, plain.coef_)
    found = model.predict(torch.as_tensor(X))
    assert isinstance(found, torch.Tensor)
    assert model.score(torch.as_tensor(X), torch.as_tensor(y)) == pytest.approx(plain.score(X, y))
    np.testing.assert_allclose(found.numpy(), plain.predict(X))
    half = TensorRegressor(2).fit(torch.as_tensor(X).bfloat16(), torch.as_tensor(y))
    assert half.predict(torch.as_tensor(X).bfloat16()).dtype == torch.float32
    assert error(half.coef_, plain.coef_) < 0.05


def test_clone_and_repeat(data):
    X, y, _ = data
    model = TensorRegressor(3, n_init=4, random_state=0).fit(X, y)
    again = clone(model).fit(X, y)
    np.testing.assert_array_equal(model.coef_, again.coef_)


def test_export_to_tensorly(data):
    X, y, _ = data
    for form in ("cp", "tucker"):
        model = TensorRegressor(2, decomposition=form).fit(X, y)
        np.testing.assert_allclose(model.to_tensorly().to_tensor(), model.coef_, atol=1e-12)
        several = TensorRegressor(2, decomposition=form).fit(X, np.stack([y, -y], 1)).to_tensorly()
        np.testing.assert_allclose(several[0].to_tensor(), -several[1].to_tensor(), atol=1e-12)
    with pytest.raises(ShapeError, match=r"plain vectors have no tensor form. Fit with shape=\.\.\."):
        TensorRegressor().fit(X.reshape(150, 30), y).to_tensorly()


# ----- warnings and refusals --------------------------------------------------------------------------


def test_it_warns_when_it_has_not_come_to_rest(data):
    X, y, _ = data
    with pytest.warns(ConvergenceWarning, match="stopped after max_iter=1 steps.*Raise max_iter"):
        TensorRegressor(2, max_iter=1).fit(X, y)


def test_it_warns_of_more_parameters_than_samples(data):
    X, y, _ = data
    with pytest.warns(LowdimWarning, match=r"22 parameters \(rank 2 of shape .* exceed the 20 samples"):
        TensorRegressor(2).fit(X[:20], y[:20])


@pytest.mark.parametrize(
    ("options", "error", "text"),
    [
        ({"rank": 0}, RankError, "rank=0 must be a positive integer"),
        ({"rank": 6}, RankError, "Use at most 5"),
        ({"rank": (2, 2, 2), "decomposition": "tucker"}, RankError, "has 3 Tucker ranks, 2 are needed"),
        ({"decomposition": "pca"}, DataError, "Use 'cp' or 'tucker'"),
        ({"shape": (5, 5)}, ShapeError, r"samples of X have shape \(6, 5\), shape=\(5, 5\)"),
        ({"alpha": -1}, DataError, "alpha=-1 must be a finite number, 0 or more"),
        ({"alpha": np.inf}, DataError, "alpha=inf must be"),
        ({"n_init": 0}, DataError, "n_init=0 must be a positive integer"),
        ({"max_iter": 2.5}, DataError, "max_iter=2.5 must be a positive integer"),
        ({"tol": -1}, DataError, "tol=-1 must be"),
        ({"alpha": 0, "rank": 5}, None, None),
    ],
)
def test_options_that_make_no_sense(data, options, error, text):
    X, y, _ = data
    if error is None:
        TensorRegressor(**options).fit(X, y)
        return
    with pytest.raises(error, match=text):
        TensorRegressor(**options).fit(X, y)


def test_a_penalty_of_zero_needs_samples(data):
    X, y, _ = data
    with pytest.raises(DataError, match="alpha=0 leaves 30 unknowns of one factor undetermined by 30"):
        TensorRegressor(5, alpha=0).fit(X[:30], y[:30])


def changed(X, value):
    X = X.copy()
    X[3, 2, 1] = value
    return X


@pytest.mark.parametrize("kind", ["array", "tensor", "memory map"])
def test_numbers_that_cannot_be_used(data, kind, tmp_path):
    X, y, _ = data

    def given(values):
        if kind == "tensor":
            return torch.as_tensor(values)
        if kind == "memory map":
            held = np.memmap(tmp_path / "X.dat", dtype=values.dtype, mode="w+", shape=values.shape)
            held[:] = values
            return held
        return values

    for value in (np.nan, np.inf):
        with pytest.raises(DataError, match="TensorRegressor: Input X contains"):
            TensorRegressor(2).fit(given(changed(X, value)), y)
    with pytest.raises(ShapeError, match=r"minimum of 2 is required|minimum of 2 and 1 is required") as told:
        TensorRegressor(1).fit(given(X[:1]), y[:1])
    assert "1 sample" in str(told.value)
    with pytest.raises(ShapeError, match="inconsistent numbers of samples"):
        TensorRegressor(2).fit(given(X), y[:-1])
    model = TensorRegressor(2).fit(given(X), y)
    with pytest.raises(ShapeError, match="X has 24 features, but TensorRegressor is expecting 30 features"):
        model.predict(given(np.ascontiguousarray(X[:, :, :4])))


@pytest.mark.parametrize(("x", "t"), [(1e200, 1.0), (1.0, 1e200)])
@pytest.mark.parametrize("flat", [False, True])
def test_numbers_whose_squares_overflow(data, x, t, flat):
    X, y, _ = data
    X = X.reshape(150, -1) if flat else X
    with pytest.raises(DataError, match=r"so large that their squares overflow\. Divide them by their size"):
        TensorRegressor(2).fit(x * X, t * y)


def test_other_refusals(data):
    X, y, _ = data
    with pytest.raises(DataError, match="Complex data not supported"):
        TensorRegressor(2).fit(X + 1j, y)
    with pytest.raises(DataError, match="Complex data not supported"):
        TensorRegressor(2).fit(torch.as_tensor(X + 1j), y)
    with pytest.raises(DataError, match="Input y contains"):
        TensorRegressor(2).fit(X, np.where(np.arange(150) == 3, np.nan, y))
    with pytest.raises(ShapeError, match="Expected 2D array, got 1D array"):
        TensorRegressor(2).fit(torch.ones(9), torch.ones(9))
    for weights in (-np.ones(150), np.zeros(150), np.full(150, np.nan)):
        with pytest.raises(DataError, match="sample_weight must be finite, not negative, and not zero"):
            TensorRegressor(2).fit(X, y, weights)
    with pytest.raises(ShapeError, match=r"sample_weight has shape \(3,\), expected \(150,\)"):
        TensorRegressor(2).fit(X, y, np.ones(3))
    with pytest.raises(NotFittedError):
        TensorRegressor(2).predict(X)
    model = TensorRegressor(2).fit(X, y)
    with pytest.raises(ShapeError, match=r"samples of X have shape \(5, 6\), shape=\(6, 5\)"):
        model.predict(X.swapaxes(1, 2))
