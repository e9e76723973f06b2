"""Cross-validated variants: the same numbers as one fit after another, and one read of X for all."""

import numpy as np
import pytest
from drawn import classification, error, regression
from sklearn.metrics import log_loss
from sklearn.model_selection import GridSearchCV, KFold, StratifiedKFold

from lowdim.errors import DataError, RankError
from lowdim.regress import TensorClassifier, TensorClassifierCV, TensorRegressor, TensorRegressorCV
from lowdim.regress.samples import Samples

ALPHAS = (1e-3, 1e-1)


@pytest.mark.parametrize("form", ["cp", "tucker"])
def test_regression_is_a_grid_search(form):
    X, y, W = regression(N=120)
    found = TensorRegressorCV((1, 2, 3), alphas=ALPHAS, cv=KFold(4), decomposition=form).fit(X, y)
    grid = {"rank": [1, 2, 3], "alpha": list(ALPHAS)}
    base = TensorRegressor(decomposition=form)
    scores = ("neg_mean_squared_error", "r2")
    theirs = GridSearchCV(base, grid, cv=KFold(4), scoring=scores, refit=scores[0]).fit(X, y)
    assert {"rank": found.rank_, "alpha": found.alpha_} == theirs.best_params_
    rows = {(p["rank"], p["alpha"]): i for i, p in enumerate(theirs.cv_results_["params"])}
    pairs = zip(found.cv_results_["rank"], found.cv_results_["alpha"], strict=True)
    for i, (rank, alpha) in enumerate(pairs):
        row = rows[rank, alpha]
        mse = -theirs.cv_results_["mean_test_neg_mean_squared_error"][row]
        assert found.cv_results_["mean_loss"][i] == pytest.approx(mse, rel=1e-5)
        r2 = theirs.cv_results_["mean_test_r2"][row]
        assert found.cv_results_["mean_score"][i] == pytest.approx(r2, rel=1e-5)
    np.testing.assert_allclose(found.coef_, theirs.best_estimator_.coef_)
    assert found.best_loss_ == min(found.cv_results_["mean_loss"])
    assert error(found.coef_, W) < 0.1


@pytest.mark.parametrize("classes", [2, 3])
@pytest.mark.parametrize("loss", ["logistic", "squared_hinge"])
def test_classification_is_one_fit_after_another(classes, loss):
    X, y, _ = classification((4, 3), 1, 90, classes=classes)
    folds = list(StratifiedKFold(3).split(X, y))
    options = {"loss": loss, "tol": 1e-8, "max_iter": 1000}
    found = TensorClassifierCV((1, 2), alphas=(1e-2, 1e-1), cv=folds, **options).fit(X, y)
    pairs = zip(found.cv_results_["rank"], found.cv_results_["alpha"], strict=True)
    for i, (rank, alpha) in enumerate(pairs):
        losses, scores = [], []
        for train, test in folds:
            model = TensorClassifier(rank, alpha=alpha, **options).fit(X[train], y[train])
            scores.append(model.score(X[test], y[test]))
            f = model.decision_function(X[test])
            if loss == "logistic":
                losses.append(log_loss(y[test], model.predict_proba(X[test])))
            else:
                t = 2 * (y[test][:, None] == np.arange(classes)) - 1 if classes > 2 else 2 * y[test] - 1
                short = np.maximum(0, 1 - t * f) ** 2
                losses.append((short.sum(1) if classes > 2 else short).mean())
        assert found.cv_results_["mean_loss"][i] == pytest.approx(np.mean(losses), rel=1e-4)
        assert found.cv_results_["mean_score"][i] == pytest.approx(np.mean(scores), abs=0.02)
    again = TensorClassifier(found.rank_, alpha=found.alpha_, **options).fit(X, y)
    np.testing.assert_allclose(found.coef_, again.coef_, atol=1e-6)
    np.testing.assert_array_equal(found.predict(X), again.predict(X))


def test_one_read_of_x_serves_all_fits(monkeypatch, tmp_path):
    X, y, _ = regression(N=60)
    held = np.memmap(tmp_path / "X.dat", dtype=X.dtype, mode="w+", shape=X.shape)
    held[:] = X
    reads = []
    plain = Samples.contract

    def counted(self, B, *, leading):
        reads.append(len(B))
        return plain(self, B, leading=leading)

    monkeypatch.setattr(Samples, "contract", counted)
    TensorRegressorCV((1, 2), alphas=ALPHAS, cv=5).fit(held, y)
    assert max(reads) == 2 * 2 * 5  # of a memory map for both ranks, too
    slowest = len(reads)
    reads.clear()
    TensorRegressorCV((1, 2), alphas=ALPHAS, cv=5).fit(X, y)
    assert max(reads) == 2  # in memory those of a fold share it, without the samples that they do not see
    held_reads = len(reads)
    reads.clear()
    for rank in (1, 2):
        for alpha in ALPHAS:
            for fold in range(5):
                seen = np.arange(60) % 5 != fold
                TensorRegressor(rank, alpha=alpha).fit(X[seen], y[seen])
    assert slowest < len(reads) / 3
    assert held_reads < 0.7 * len(reads)


def test_sample_weights_weigh_fits_and_judgement():
    X, y, _ = regression(N=60)
    weights = np.tile([1.0, 2.0, 1.0], 20)
    rows = np.repeat(np.arange(60), weights.astype(int))
    thirds = np.arange(60) % 3
    folds = [(np.flatnonzero(thirds != k), np.flatnonzero(thirds == k)) for k in range(3)]
    copied = [(np.flatnonzero(np.isin(rows, a)), np.flatnonzero(np.isin(rows, b))) for a, b in folds]
    one = TensorRegressorCV((1, 2), alphas=ALPHAS, cv=folds).fit(X, y, weights)
    other = TensorRegressorCV((1, 2), alphas=ALPHAS, cv=copied).fit(X[rows], y[rows])
    np.testing.assert_allclose(one.cv_results_["mean_loss"], other.cv_results_["mean_loss"], rtol=1e-6)
    np.testing.assert_allclose(one.coef_, other.coef_, rtol=1e-6, atol=1e-8)


def test_default_ranks_are_those_that_fit():
    X, y, _ = regression((2, 7), 1, 80)
    assert set(TensorRegressorCV().fit(X, y).cv_results_["rank"]) == {1, 2}
    assert set(TensorRegressorCV().fit(X.reshape(80, -1), y).cv_results_["rank"]) == {1}
    several = TensorRegressorCV(alphas=1e-2).fit(X, np.stack([y, -y], 1))
    assert several.coef_.shape == (2, 2, 7)


def test_a_search_is_stored_as_what_it_chose(tmp_path):
    X, y, _ = regression(N=80)
    found = TensorRegressorCV((1, 2), cv=3).fit(X, y)
    found.save(tmp_path)
    loaded = TensorRegressorCV.load(tmp_path)
    assert type(loaded) is TensorRegressor
    assert (loaded.rank, loaded.alpha) == (found.rank_, found.alpha_)
    np.testing.assert_array_equal(loaded.predict(X), found.predict(X))


def test_refusals():
    X, y, _ = regression(N=30)
    with pytest.raises(RankError, match="rank=9 is too large"):
        TensorRegressorCV((1, 9)).fit(X, y)
    with pytest.raises(RankError, match=r"ranks=\(\) names none"):
        TensorRegressorCV(()).fit(X, y)
    with pytest.raises(DataError, match="must be finite numbers, 0 or more"):
        TensorRegressorCV(alphas=(-1.0,)).fit(X, y)
    with pytest.raises(DataError, match="alpha=0 leaves 30 unknowns"):
        TensorRegressorCV((5,), alphas=(0, 1)).fit(X, y)
    with pytest.raises(DataError, match="number of splits n_splits=50"):
        TensorRegressorCV(cv=50).fit(X, y)
    with pytest.raises(DataError, match="all samples of a fold have weight 0"):
        TensorRegressorCV(cv=3).fit(X, y, np.r_[np.zeros(10), np.ones(20)])
