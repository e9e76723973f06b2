"""What every tensor regressor and classifier must obey, over one table of all of them."""

import warnings

import numpy as np
import pytest
import torch
from sklearn import config_context
from sklearn.base import clone

from lowdim.regress import TensorClassifier, TensorClassifierCV, TensorRegressor, TensorRegressorCV

SEARCH = {"ranks": (1, 2), "cv": 3}
# Name -> estimator, targets that it is given, and what is below which two fits count as the same.
ESTIMATORS = {
    "TensorRegressor": (TensorRegressor(2, tol=1e-10, max_iter=500), "numbers", 1e-4),
    "TensorRegressor, Tucker": (
        TensorRegressor(2, decomposition="tucker", tol=1e-10, max_iter=500),
        "numbers",
        1e-4,
    ),
    "TensorRegressor, targets": (TensorRegressor(1, tol=1e-10, max_iter=500), "several", 1e-4),
    "TensorRegressor, no intercept": (
        TensorRegressor(2, fit_intercept=False, tol=1e-10, max_iter=500),
        "numbers",
        1e-4,
    ),
    "TensorRegressorCV": (TensorRegressorCV(**SEARCH, tol=1e-10, max_iter=500), "numbers", 1e-4),
    "TensorClassifier": (TensorClassifier(2, tol=1e-9, max_iter=2000), "two", 1e-4),
    "TensorClassifier, Tucker": (
        TensorClassifier(2, decomposition="tucker", tol=1e-9, max_iter=2000),
        "two",
        1e-3,
    ),
    "TensorClassifier, classes": (TensorClassifier(2, tol=1e-9, max_iter=2000), "three", 1e-3),
    "TensorClassifier, hinge": (
        TensorClassifier(2, loss="squared_hinge", tol=1e-9, max_iter=2000),
        "three",
        1e-3,
    ),
    "TensorClassifierCV": (
        TensorClassifierCV(**SEARCH, alphas=(1e-2, 1e-1), tol=1e-9, max_iter=2000),
        "two",
        1e-3,
    ),
}
every = pytest.mark.parametrize("name", ESTIMATORS)
single = pytest.mark.parametrize("name", [name for name in ESTIMATORS if "CV" not in name])
SHAPES = [(5, 4), (4, 3, 3)]
N = 90


def data(name, shape=(5, 4), seed=0):
    rng = np.random.default_rng(seed)
    X = rng.normal(size=(N, *shape)) + 0.3
    a, b = (
        np.einsum(*[x for k in range(len(shape)) for x in (rng.normal(size=shape[k]), [k])]) for _ in range(2)
    )
    scores = np.stack([np.tensordot(X, W, len(shape)) for W in (a, b, -a - b)], 1)
    scores = scores - scores.mean(0) + 0.4 * scores.std(0) * rng.normal(size=scores.shape)
    targets = {
        "numbers": scores[:, 0] + scores[:, 1] + 2,
        "several": scores[:, :2] + 1,
        "two": np.where(scores[:, 0] > 0, "yes", "no"),
        "three": scores.argmax(1),
    }
    return X, targets[ESTIMATORS[name][1]]


def fitted(name, X, y, *args, **options):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return clone(ESTIMATORS[name][0]).set_params(**options).fit(X, y, *args)


def same(name, one, other, factor=1.0):
    assert error(one.coef_, other.coef_ * factor) < ESTIMATORS[name][2]


def error(found, true):
    return np.linalg.norm(found - true) / np.linalg.norm(true)


def outcome(model, X):
    return model.decision_function(X) if hasattr(model, "decision_function") else model.predict(X)


@every
@pytest.mark.parametrize("shape", SHAPES)
def test_a_memory_map_read_in_pieces_gives_the_fit_in_memory(name, shape, tmp_path):
    X, y = data(name, shape)
    held = np.memmap(tmp_path / "X.dat", dtype=X.dtype, mode="w+", shape=X.shape)
    held[:] = X
    whole = fitted(name, X, y)
    with config_context(working_memory=4 * 8 * X[0].size * 11 / 2**20):
        pieces = fitted(name, np.memmap(tmp_path / "X.dat", dtype=X.dtype, mode="r", shape=X.shape), y)
        found = outcome(pieces, held)
    assert error(pieces.coef_, whole.coef_) < 1e-6
    np.testing.assert_allclose(found, outcome(whole, X), atol=1e-5)


@every
def test_a_weight_is_so_many_copies(name):
    X, y = data(name)
    s = np.random.default_rng(1).integers(0, 3, N)
    rows = np.repeat(np.arange(N), s)
    options = {}
    if "CV" in name:
        # The same folds: copies stay together.
        folds = [np.arange(N) % 3 == k for k in range(3)]
        one = {"cv": [(np.flatnonzero(~f), np.flatnonzero(f)) for f in folds]}
        options = {"cv": [(np.flatnonzero(~f[rows]), np.flatnonzero(f[rows])) for f in folds]}
    weighted = fitted(name, X, y, s, **(one if options else {}))
    copied = fitted(name, X[rows], y[rows], **options)
    same(name, weighted, copied)
    np.testing.assert_allclose(weighted.intercept_, copied.intercept_, atol=1e-2)


@every
def test_the_order_of_the_samples_does_not_matter(name):
    if "CV" in name:
        pytest.skip("the folds are other samples then")
    X, y = data(name)
    order = np.random.default_rng(1).permutation(N)
    same(name, fitted(name, X, y), fitted(name, X[order], y[order]))


@single
@pytest.mark.parametrize("shape", SHAPES)
def test_turned_coordinates_of_every_mode_turn_the_coefficients(name, shape):
    X, y = data(name, shape)
    turns = [np.linalg.qr(np.random.default_rng(k).normal(size=(n, n)))[0] for k, n in enumerate(shape)]

    def turned(x):
        for k, Q in enumerate(turns):
            x = np.moveaxis(np.tensordot(Q, x, (1, x.ndim - len(shape) + k)), 0, x.ndim - len(shape) + k)
        return x

    plain, other = fitted(name, X, y), fitted(name, turned(X), y)
    assert error(other.coef_, turned(plain.coef_)) < ESTIMATORS[name][2]
    np.testing.assert_allclose(outcome(other, turned(X)), outcome(plain, X), atol=1e-2)


@single
def test_a_shift_of_the_samples_goes_into_the_intercept(name):
    if "no intercept" in name:
        pytest.skip("there is none")
    X, y = data(name)
    plain, other = fitted(name, X, y), fitted(name, X + 100, y)
    same(name, other, plain)
    np.testing.assert_allclose(outcome(other, X + 100), outcome(plain, X), atol=1e-2)


@pytest.mark.parametrize(
    "name", [name for name in ESTIMATORS if name.startswith("TensorRegressor") and "CV" not in name]
)
def test_the_unit_of_samples_and_targets(name):
    X, y = data(name)
    plain = fitted(name, X, y)
    same(name, fitted(name, X, 7 * y), plain, 7)
    same(name, fitted(name, 10 * X, y, alpha=100 * plain.alpha), plain, 0.1)


@pytest.mark.parametrize(
    "name", ["TensorClassifier", "TensorClassifier, Tucker", "TensorClassifier, classes"]
)
def test_the_unit_of_the_samples_of_a_classifier(name):
    # The penalty acts on every part: of p parts each shrinks by the p-th root.
    X, y = data(name)
    plain = fitted(name, X, y)
    parts = len(plain.factors_) + (plain.core_ is not None)
    same(name, fitted(name, 10 * X, y, alpha=10 ** (2 / parts) * plain.alpha, tol=1e-8), plain, 0.1)


@every
def test_single_precision_is_close(name):
    # Within 2000 roundings of float32: only products with X are taken in it.
    X, y = data(name)
    double, narrow = fitted(name, X, y), fitted(name, X.astype(np.float32), y)
    assert error(narrow.coef_, double.coef_) < 2000 * np.finfo(np.float32).eps + ESTIMATORS[name][2]
    found = outcome(narrow, X.astype(np.float32))
    if not isinstance(found, list) and found.dtype.kind == "f":
        assert found.dtype == np.float32


@every
def test_flat_samples_with_a_shape_are_samples_with_modes(name):
    X, y = data(name)
    one, other = fitted(name, X, y), fitted(name, X.reshape(N, -1), y, shape=(5, 4))
    np.testing.assert_array_equal(one.coef_, other.coef_)
    everywhere = fitted(name, X, y, mask=np.ones((5, 4), dtype=bool))
    np.testing.assert_array_equal(one.coef_, everywhere.coef_)


@every
def test_save_and_load(name, tmp_path):
    X, y = data(name)
    model = fitted(name, X, y)
    model.save(tmp_path / "model")
    loaded = type(model).load(tmp_path / "model")
    np.testing.assert_array_equal(loaded.coef_, model.coef_)
    np.testing.assert_array_equal(loaded.predict(X), model.predict(X))


@every
def test_the_seed_decides(name):
    X, y = data(name)
    one, same_, other = (fitted(name, X, y, n_init=3, random_state=seed) for seed in (0, 0, 1))
    np.testing.assert_array_equal(one.coef_, same_.coef_)
    # The best of several starts is the same minimum, here.
    assert other.objective_ == pytest.approx(one.objective_, rel=0.05)


@every
def test_tensors_of_torch_give_the_same(name):
    X, y = data(name)
    given = torch.as_tensor(y) if np.asarray(y).dtype.kind != "U" else y
    plain, model = fitted(name, X, y), fitted(name, torch.as_tensor(X), given)
    np.testing.assert_allclose(model.coef_, plain.coef_, atol=1e-8)


@every
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device, and torch sees none here")
def test_a_cuda_device_gives_the_same(name):
    X, y = data(name)
    far = torch.as_tensor(X, device="cuda")
    plain, model = fitted(name, X, y), fitted(name, far, y)
    same(name, model, plain)
    found = outcome(model, far)
    if isinstance(found, torch.Tensor):
        assert found.is_cuda
        np.testing.assert_allclose(found.cpu().numpy(), outcome(plain, X), atol=1e-2)


def test_several_targets_are_a_loop_over_targets():
    X, y = data("TensorRegressor, targets")
    together = fitted("TensorRegressor, targets", X, y)
    for t in range(2):
        alone = fitted("TensorRegressor, targets", X, y[:, t])
        np.testing.assert_allclose(together.coef_[t], alone.coef_, rtol=1e-8, atol=1e-10)
        assert together.intercept_[t] == pytest.approx(alone.intercept_)


def test_one_against_the_rest_is_a_loop_over_classes():
    X, y = data("TensorClassifier, hinge")
    together = fitted("TensorClassifier, hinge", X, y)
    for c in range(3):
        alone = fitted("TensorClassifier, hinge", X, y == c)
        assert error(together.coef_[c], alone.coef_) < 1e-3


@pytest.mark.parametrize("rank", [1, 2])
def test_transposed_matrices_have_transposed_coefficients(rank):
    X, y = data("TensorRegressor")
    one, other = (fitted("TensorRegressor", x, y, rank=rank) for x in (X, X.swapaxes(1, 2)))
    assert error(other.coef_.T, one.coef_) < 1e-3
