"""TensorClassifier: losses, classes, weights, and what it refuses, by the message."""

import numpy as np
import pytest
import torch
from drawn import classification, error
from sklearn.exceptions import ConvergenceWarning, NotFittedError

from lowdim.errors import DataError, LowdimWarning, ShapeError
from lowdim.regress import TensorClassifier


def direction(W):
    return W / np.linalg.norm(W)


@pytest.mark.parametrize("loss", ["logistic", "squared_hinge"])
@pytest.mark.parametrize("form", ["cp", "tucker"])
def test_two_classes(loss, form):
    X, y, W = classification(N=600, noise=0.1)
    labels = np.array(["no", "yes"])[y]
    model = TensorClassifier(1, loss=loss, decomposition=form, alpha=1e-3).fit(X, labels)
    assert model.coef_.shape == (6, 5)
    assert isinstance(model.intercept_, float)
    assert error(direction(model.coef_), direction(W[0])) < 0.12
    assert model.score(X, labels) > 0.93
    assert set(model.predict(X)) == {"no", "yes"}
    scores = model.decision_function(X)
    np.testing.assert_allclose(scores, model.intercept_ + np.tensordot(X, model.coef_, 2))
    np.testing.assert_array_equal(model.predict(X) == "yes", scores > 0)


@pytest.mark.parametrize("loss", ["logistic", "squared_hinge"])
@pytest.mark.parametrize("form", ["cp", "tucker"])
def test_several_classes(loss, form):
    X, y, _ = classification(N=400, classes=3)
    model = TensorClassifier(3, loss=loss, decomposition=form).fit(X, y)
    assert model.coef_.shape == (3, 6, 5)
    assert model.intercept_.shape == (3,)
    assert model.decision_function(X).shape == (400, 3)
    assert model.score(X, y) > 0.8
    if loss == "logistic":
        # One form for all: a factor of the classes, or a core for each.
        assert len(model.factors_) == (3 if form == "cp" else 2)
        assert model.n_parameters_ == (3 * 14 if form == "cp" else 3 * 9 + 33)
    else:
        assert len(model.factors_) == 3
        assert model.n_parameters_ == 3 * (33 if form == "cp" else 42)
    exported = model.to_tensorly()
    dense = np.stack([e.to_tensor() for e in exported]) if loss == "squared_hinge" else exported.to_tensor()
    np.testing.assert_allclose(dense, model.coef_, atol=1e-10)


@pytest.mark.parametrize("classes", [2, 3])
def test_probabilities(classes):
    X, y, _ = classification(classes=classes)
    model = TensorClassifier(2).fit(X, y)
    P = model.predict_proba(X)
    assert P.shape == (200, classes)
    np.testing.assert_allclose(P.sum(1), 1)
    np.testing.assert_array_equal(model.classes_[P.argmax(1)], model.predict(X))
    np.testing.assert_allclose(np.log(P), model.predict_log_proba(X))
    # The intercept is free: on average a class is as probable as it is frequent.
    np.testing.assert_allclose(P.mean(0), np.bincount(y) / 200, atol=1e-4)
    assert not hasattr(TensorClassifier(loss="squared_hinge"), "predict_proba")


def test_class_weights_are_sample_weights():
    X, y, _ = classification(N=120)
    y[:40] = 1
    by_class = TensorClassifier(1, class_weight={0: 2, 1: 1}).fit(X, y)
    by_sample = TensorClassifier(1).fit(X, y, np.where(y == 0, 2.0, 1.0))
    np.testing.assert_allclose(by_class.coef_, by_sample.coef_)
    balanced = TensorClassifier(1, class_weight="balanced").fit(X, y)
    share = (balanced.predict_proba(X)[:, 1] * np.where(y, 0.5 / y.mean(), 0.5 / (1 - y.mean()))).mean()
    assert share == pytest.approx(0.5, abs=1e-3)


def test_more_starts_are_never_worse():
    X, y, _ = classification((4, 4, 3), 2, 100)
    one, more = TensorClassifier(2).fit(X, y), TensorClassifier(2, n_init=4, random_state=0).fit(X, y)
    assert more.objective_ <= one.objective_ * (1 + 1e-9)
    again = TensorClassifier(2, n_init=4, random_state=0).fit(X, y)
    np.testing.assert_array_equal(more.coef_, again.coef_)


def test_the_penalty_of_matrices_is_the_nuclear_norm():
    X, y, _ = classification(N=300)
    model = TensorClassifier(5, alpha=0.02, tol=1e-8, max_iter=1000).fit(X, y)
    margins = (2 * y - 1) * model.decision_function(X)
    nuclear = np.linalg.svd(model.coef_, compute_uv=False).sum()
    assert model.objective_ == pytest.approx(np.log1p(np.exp(-margins)).mean() + 0.02 * nuclear, rel=1e-6)


def test_tensors_are_answered_with_tensors():
    X, y, _ = classification()
    plain = TensorClassifier(1).fit(X, y)
    model = TensorClassifier(1).fit(torch.as_tensor(X), torch.as_tensor(y))
    np.testing.assert_allclose(plain.coef_, model.coef_)
    assert isinstance(model.decision_function(torch.as_tensor(X)), torch.Tensor)
    assert isinstance(model.predict_proba(torch.as_tensor(X)), torch.Tensor)
    assert model.predict_log_proba(torch.as_tensor(X)).shape == (200, 2)
    np.testing.assert_array_equal(model.predict(torch.as_tensor(X)), plain.predict(X))
    assert model.score(torch.as_tensor(X), torch.as_tensor(y)) == plain.score(X, y)


def test_warnings():
    X, y, _ = classification()
    with pytest.warns(ConvergenceWarning, match="stopped after max_iter=2 steps"):
        TensorClassifier(1, max_iter=2).fit(X, y)
    with pytest.warns(LowdimWarning, match=r"22 parameters \(rank 2 of shape .* exceed the 20 samples"):
        TensorClassifier(2).fit(X[:20], y[:20])


def test_refusals():
    X, y, _ = classification()
    with pytest.raises(DataError, match=r"y holds one class \(1\), classification needs"):
        TensorClassifier(1).fit(X, np.ones(200, int))
    with pytest.raises(DataError, match="Unknown label type"):
        TensorClassifier(1).fit(X, np.random.default_rng(0).normal(size=200))
    with pytest.raises(DataError, match=r"loss='hinge' is unknown. Use 'logistic' or 'squared_hinge'"):
        TensorClassifier(1, loss="hinge").fit(X, y)
    with pytest.raises(DataError, match="Input X contains NaN"):
        TensorClassifier(1).fit(np.where(X > 3, np.nan, X), y)
    with pytest.raises(ShapeError, match="minimum of 2 is required"):
        TensorClassifier(1).fit(X[:1], y[:1])
    with pytest.raises(DataError, match="their squares overflow"):
        TensorClassifier(1).fit(1e200 * X, y)
    with pytest.raises(NotFittedError):
        TensorClassifier(1).predict(X)
