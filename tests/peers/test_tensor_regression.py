"""Tensor regression, against scikit-learn where the models coincide, and TensorLy where the loss does."""

import numpy as np
import pytest
from sklearn.linear_model import LogisticRegression, Ridge, RidgeCV
from tensorly.regression import CPRegressor, TuckerRegressor

from lowdim.regress import TensorClassifier, TensorRegressor, TensorRegressorCV


def draw(shape, N=120, seed=0):
    rng = np.random.default_rng(seed)
    X = rng.normal(size=(N, *shape)) + 1
    u = [rng.normal(size=(n, 2)) for n in shape]
    letters = "abc"[: len(shape)]
    W = np.einsum(",".join(f"{letter}r" for letter in letters) + f"->{letters}", *u)
    scores = X.reshape(N, -1) @ W.ravel()
    return X, scores + 0.2 * scores.std() * rng.normal(size=N), rng


@pytest.mark.parametrize("p", [12, 300])
@pytest.mark.parametrize("intercept", [True, False])
def test_vectors_are_ridge_regression(p, intercept):
    X, y, rng = draw((p,))
    Y = np.stack([y, rng.normal(size=120)], 1)
    s = rng.random(120)
    for targets, weights in ((y, None), (y, s), (Y, None)):
        total = 120 if weights is None else s.sum()
        ours = TensorRegressor(alpha=0.05, fit_intercept=intercept).fit(X, targets, weights)
        theirs = Ridge(alpha=0.05 * total, fit_intercept=intercept).fit(X, targets, weights)
        np.testing.assert_allclose(ours.coef_, theirs.coef_, rtol=1e-8, atol=1e-8)
        np.testing.assert_allclose(ours.intercept_, theirs.intercept_, rtol=1e-8, atol=1e-8)


def test_the_search_over_vectors_is_that_of_ridge():
    X, y, _ = draw((12,), 60)
    alphas = np.array([1e-3, 1e-2, 1e-1, 1.0])
    folds = [(np.delete(np.arange(60), test), test) for test in np.arange(60).reshape(6, 10)]
    ours = TensorRegressorCV(alphas=alphas, cv=folds).fit(X, y)
    # Their penalty is not divided by the number of samples, of which a fold has 50.
    theirs = RidgeCV(alphas=50 * alphas, cv=folds, scoring="neg_mean_squared_error").fit(X, y)
    assert ours.alpha_ == pytest.approx(theirs.alpha_ / 50)
    assert ours.best_loss_ == pytest.approx(-theirs.best_score_, rel=1e-8)


@pytest.mark.parametrize("classes", [2, 3])
def test_vectors_are_logistic_regression(classes):
    X, y, rng = draw((8,))
    labels = np.digitize(y, np.quantile(y, np.arange(1, classes) / classes))
    s = rng.random(120)
    ours = TensorClassifier(alpha=0.1, tol=1e-9, max_iter=2000).fit(X, labels, s)
    theirs = LogisticRegression(C=1 / (0.1 * s.sum()), tol=1e-10, max_iter=5000).fit(X, labels, s)
    found = ours.coef_ if classes > 2 else ours.coef_[None]
    np.testing.assert_allclose(found, theirs.coef_, rtol=1e-4, atol=1e-6)
    np.testing.assert_allclose(ours.predict_proba(X), theirs.predict_proba(X), atol=1e-5)


@pytest.mark.parametrize("shape", [(6, 5), (4, 3, 5)])
def test_least_squares_is_that_of_tensorly(shape):
    X, y, _ = draw(shape, 200)
    size = np.prod(shape)
    ours = TensorRegressor(2, alpha=1e-10, fit_intercept=False, tol=1e-12, max_iter=3000).fit(X, y)
    best = np.inf
    for seed in range(5):  # its random starts may end elsewhere
        peer = CPRegressor(2, tol=1e-12, reg_W=1e-8, n_iter_max=1000, random_state=seed, verbose=0).fit(X, y)
        loss = np.mean((y - X.reshape(-1, size) @ peer.weight_tensor_.ravel()) ** 2)
        if loss < best:
            best, weight = loss, peer.weight_tensor_
    assert ours.objective_ <= best * (1 + 1e-6)
    assert np.linalg.norm(ours.coef_ - weight) < 1e-3 * np.linalg.norm(weight)


def test_tucker_least_squares_is_no_worse_than_that_of_tensorly():
    X, y, _ = draw((6, 5), 200)
    ours = TensorRegressor(2, decomposition="tucker", alpha=1e-10, fit_intercept=False, tol=1e-10).fit(X, y)
    peer = TuckerRegressor([2, 2], tol=1e-10, reg_W=1e-8, n_iter_max=500, random_state=0, verbose=0).fit(X, y)
    loss = np.mean((y - X.reshape(200, -1) @ peer.weight_tensor_.ravel()) ** 2)
    assert ours.objective_ <= loss * (1 + 1e-6)
    assert np.linalg.norm(ours.coef_ - peer.weight_tensor_) < 1e-2 * np.linalg.norm(ours.coef_)
