"""`regress`: what is taken for a class, honest assessments, units, results that load."""

import json
import warnings

import numpy as np
import pandas as pd
import pytest
from drawn import classification, error, regression
from sklearn.linear_model import LogisticRegressionCV, RidgeCV
from sklearn.model_selection import StratifiedKFold

from lowdim.errors import DataError, RankError, RunError
from lowdim.regress import (
    RegressResult,
    TensorClassifier,
    TensorClassifierCV,
    TensorRegressor,
    TensorRegressorCV,
    regress,
)
from lowdim.regress.assess import INVERSE_PENALTIES, PENALTIES, Assessment, assess, baseline
from lowdim.regress.record import maps_record

QUICK = {"ranks": (1, 2), "alphas": (1e-3, 1e-1), "folds": 3}

pytestmark = pytest.mark.filterwarnings("ignore")


@pytest.mark.parametrize(
    ("y", "task"),
    [
        (np.repeat([0, 1], 20), "classification"),
        (np.repeat(["a", "b"], 20), "classification"),
        (np.repeat([True, False], 20), "classification"),
        (np.arange(40), "regression"),
        (np.repeat([0.0, 1.0], 20), "regression"),
    ],
)
def test_the_task_is_read_off_the_targets(y, task):
    X = np.random.default_rng(0).normal(size=(40, 3, 2))
    assert regress(X, y=y, **QUICK).report["task"] == task


def test_the_model_is_in_the_unit_of_the_samples():
    X, y, W = regression(N=200)
    plain = regress(X, y=y, **QUICK)
    large = regress(255 * X, y=y, **QUICK)
    np.testing.assert_allclose(large.model.coef_ * 255, plain.model.coef_, rtol=1e-6)
    assert large.report["assessment"]["score"] == pytest.approx(plain.report["assessment"]["score"])
    assert error(plain.model.coef_, W) < 0.1
    np.testing.assert_allclose(large.model.predict(255 * X), plain.model.predict(X), rtol=1e-6)
    for result in (plain, large):
        rebuilt = result.model.factors_[0] @ result.model.factors_[1].T
        np.testing.assert_allclose(rebuilt, result.model.coef_, atol=1e-10)


@pytest.mark.parametrize("loss", ["logistic", "squared_hinge"])
def test_classes_and_forms_are_unscaled_too(loss):
    X, y, _ = classification(N=150, classes=3)
    result = regress(50 * X, y=y, loss=loss, decomposition="tucker", **QUICK)
    exported = result.model.to_tensorly()
    dense = np.stack([e.to_tensor() for e in exported]) if loss == "squared_hinge" else exported.to_tensor()
    np.testing.assert_allclose(dense, result.model.coef_, atol=1e-8)
    assert result.report["parameters"] == result.model.n_parameters_


def test_a_sample_is_predicted_by_fits_that_have_not_seen_it():
    # Targets that are pure chance are not predicted, however many coefficients there are.
    rng = np.random.default_rng(0)
    X = rng.normal(size=(60, 10, 10))
    assert regress(X, y=rng.normal(size=60), **QUICK).report["assessment"]["score"] < 0.2
    chance = regress(X, y=rng.permutation(60) % 2, **QUICK)
    assert 0.25 < chance.report["assessment"]["score"] < 0.75
    assert "no difference beyond chance" in chance.report["sentence"]


def test_the_finding_compares_with_the_plain_model():
    X, y, _ = regression((12, 12), 1, 100)
    report = regress(X, y=y, **QUICK).report
    assert report["assessment"]["score"] > report["assessment"]["plain_score"] + 0.1
    assert "better beyond chance" in report["sentence"]
    assert report["sentence"].startswith("Coefficients of rank ")
    vectors = regress(X[:, 0], y=X[:, 0, 0], folds=3).report
    assert vectors["sentence"].startswith("Plain coefficients explain")


def test_an_assessment_counts():
    y = np.array([0.0, 1.0, 2.0, 3.0])
    found = Assessment(y + np.array([0, 0, 0, 1]), y * 0 + 1.5, y, False)
    assert found.score == pytest.approx(1 - 0.25 / y.var())
    assert found.plain_score == pytest.approx(0)
    gain, spread = found.gain
    assert gain == pytest.approx(found.score - found.plain_score)
    each = ((y - 1.5) ** 2 - np.array([0, 0, 0, 1])) / y.var()
    assert spread == pytest.approx(each.std(ddof=1) / 2)


@pytest.mark.parametrize("p", [6, 90])
def test_the_baseline_in_the_span_of_the_samples_is_the_plain_model(p):
    rng = np.random.default_rng(0)
    X, new = rng.normal(size=(40, p)), rng.normal(size=(9, p))
    y = X[:, 0] + 0.3 * rng.normal(size=40)
    theirs = RidgeCV(alphas=PENALTIES).fit(X, y).predict(new)
    np.testing.assert_allclose(baseline(X, y, new, classifier=False), theirs, rtol=1e-6)
    labels = (y > 0).astype(int)
    model = LogisticRegressionCV(
        Cs=INVERSE_PENALTIES, cv=StratifiedKFold(5, shuffle=True, random_state=0), max_iter=1000
    ).fit(X, labels)
    np.testing.assert_array_equal(baseline(X, labels, new, classifier=True), model.predict(new))


def test_too_many_folds_are_refused():
    X, y, _ = classification(N=30)
    with pytest.raises(DataError, match="31 folds cannot be made of 30 samples"):
        assess(None, X, y * 1.0, classifier=False, folds=31, seed=0)
    with pytest.raises(DataError, match="folds=1 are too few"):
        regress(X, y=y, folds=1)
    with pytest.raises(DataError, match="task='guess' is unknown"):
        regress(X, y=y, task="guess")
    with pytest.raises(DataError, match="targets of array are no numbers"):
        regress(X, y=np.repeat(["a", "b"], 15), task="regression")
    with pytest.raises(RunError, match="need the output folder"):
        regress(X, y=y, resume=True)


@pytest.mark.parametrize("kind", [regression, classification])
def test_folds_within_folds_are_drawn(monkeypatch, kind):
    # Samples often lie in order, of time or of site: folds are no stretches of them.
    seen = []
    for search in (TensorRegressorCV, TensorClassifierCV):
        folds = search._folds
        keep = lambda *given, folds=folds, **options: seen.append(folds(*given, **options)) or seen[-1]  # noqa: E731
        monkeypatch.setattr(search, "_folds", keep)
    X, y, _ = kind(N=60)
    regress(X, y=y, **QUICK)
    assert len(seen) == 4
    first = [test.tolist() for _, test in seen[-1]]
    seen.clear()
    regress(X, y=y, seed=1, **QUICK)
    assert [test.tolist() for _, test in seen[-1]] != first


def test_numbers_of_numpy_are_numbers(tmp_path):
    X, y, _ = regression(N=60)
    options = {"ranks": np.arange(1, 3), "alphas": np.array([1e-3, 1e-1]), "folds": np.int64(3)}
    shape = (np.int64(6), np.int64(5))
    result = regress(
        X, y=y, seed=np.int64(1), n_init=np.int32(1), shape=shape, output=tmp_path / "out", **options
    )
    assert result.report == RegressResult.load(tmp_path / "out").report
    assert regress(X, y=y, seed=1, **QUICK).report["assessment"] == result.report["assessment"]
    pairs = regress(X, y=y, decomposition="tucker", ranks=[np.array([2, 2])], alphas=[0.1], folds=3)
    assert pairs.report["sentence"].startswith("Coefficients of rank (2, 2) ")


def test_a_single_rank_and_penalty_are_lists_of_one():
    X, y, _ = regression(N=60)
    report = regress(X, y=y, ranks=2, alphas=0.1, folds=3).report
    assert (report["comparison"]["rank"], report["comparison"]["alpha"]) == ([2], [0.1])


@pytest.mark.parametrize(
    ("options", "error", "text"),
    [
        ({"folds": 2.5}, DataError, "folds=2.5 must be an integer"),
        ({"n_init": 1.5}, DataError, "n_init=1.5 must be a positive integer"),
        ({"seed": -1}, DataError, "seed=-1 must be an integer, 0 or more"),
        ({"seed": None}, DataError, "seed=None must be an integer"),
        ({"ranks": 2.5}, RankError, "rank 2.5 is no positive integer"),
        ({"ranks": ["a"]}, RankError, "rank 'a' is no positive integer"),
        ({"ranks": []}, DataError, "names none"),
        ({"alphas": "much"}, DataError, "alphas hold 'much', they must be finite numbers"),
        ({"alphas": [-1.0]}, DataError, r"alphas hold -1.0, they must be finite numbers"),
    ],
)
def test_options_of_another_kind_are_refused(options, error, text):
    X, y, _ = regression(N=20)
    with pytest.raises(error, match=text):
        regress(X, y=y, **options)


@pytest.mark.parametrize("task", ["auto", "regression", "classification"])
def test_targets_of_another_kind_are_refused(task):
    X = np.random.default_rng(0).normal(size=(20, 3, 2))
    for gone in (None, np.nan):
        for word in ("a", 1):
            y = np.array([word, 2 if word == 1 else "b"] * 10, dtype=object)
            y[3] = gone
            with pytest.raises(DataError, match="are missing or infinite, the first of sample 3"):
                regress(X, y=y, task=task)
    with pytest.raises(DataError, match="hold words and int"):
        regress(X, y=np.array(["a", 1] * 10, dtype=object), task=task)
    with pytest.raises(DataError, match="hold dict, expected numbers or words"):
        regress(X, y=np.array([{}] * 20, dtype=object), task=task)
    with pytest.raises(DataError, match=r"hold 0.5, which is no class"):
        regress(X, y=np.arange(20) / 2, task="classification")


def test_objects_are_taken_for_what_they_are(tmp_path):
    X, y, _ = classification(N=60)
    words = regress(X, y=np.array(["no", "yes"], dtype=object)[y], **QUICK)
    words.save(tmp_path)
    assert RegressResult.load(tmp_path).model.classes_.tolist() == ["no", "yes"]
    assert regress(X, y=np.arange(60).astype(object), **QUICK).report["task"] == "regression"


def test_rare_classes():
    X = np.random.default_rng(0).normal(size=(40, 3, 2))
    y = np.arange(40) % 2
    with pytest.raises(DataError, match="class 2 has one sample, expected two or more"):
        regress(X, y=np.where(np.arange(40) == 7, 2, y), folds=2)
    few = np.where(np.isin(np.arange(40), (7, 20)), 2, y)
    with pytest.raises(DataError, match=r"3 folds cannot be made of 2 samples of the rarest class"):
        regress(X, y=few, folds=3)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        regress(X, y=few, ranks=1, alphas=0.1, folds=2)
    assert not [w for w in caught if "least populated" in str(w.message)]


def test_odd_columns_of_tables_are_remarked_on():
    rng = np.random.default_rng(0)
    table = pd.DataFrame(rng.normal(size=(40, 2)), columns=["a", "b"])
    table["y"] = table["a"] + 0.1 * rng.normal(size=40)
    assert regress(table, folds=3).report["notes"] == []
    ids = table.copy()
    ids.insert(0, "id", range(5000, 5040))
    counted, apart = regress(ids, folds=3).report["notes"]
    assert counted.startswith("Column 'id' counts the samples")
    assert apart.startswith("Columns differ in size by a factor of")
    assert "'id' the largest" in apart
    (apart,) = regress(table.assign(b=1e3 * table["b"]), folds=3).report["notes"]
    assert "'a' is the smallest, 'b' the largest" in apart


def test_a_result_loads_and_goes_on(tmp_path):
    X, y, _ = classification(N=80)
    result = regress(X, y=np.array(["no", "yes"])[y], output=tmp_path / "out", **QUICK)
    again = RegressResult.load(tmp_path / "out")
    assert isinstance(again.model, TensorClassifier)
    assert again.report == result.report
    pd.testing.assert_frame_equal(
        again.predictions, result.predictions.astype({"sample": str}), check_dtype=False
    )
    table = again.predict(X)
    assert list(table.columns) == ["sample", "predicted", "probability"]
    np.testing.assert_array_equal(table["predicted"], result.model.predict(X))
    assert again.score(table) is None
    assert again.score(table.assign(target=np.array(["no", "yes"])[y])) > 0.8
    assert "parameters in place of 30" in again.summary()
    # A finished run is read again, not repeated.
    assert (
        regress(X, y=np.array(["no", "yes"])[y], output=tmp_path / "out", resume=True, **QUICK).report
        == result.report
    )


def test_results_of_regression_load(tmp_path):
    X, y, _ = regression(N=60)
    result = regress(X, y=y, **QUICK)
    result.save(tmp_path)
    result.save(tmp_path)
    again = RegressResult.load(tmp_path)
    assert isinstance(again.model, TensorRegressor)
    assert again.score(again.predict(X).assign(target=y)) > 0.9


def test_damaged_results_are_refused(tmp_path):
    X, y, _ = regression(N=40)
    with pytest.raises(RunError, match=r"holds no report.json"):
        RegressResult.load(tmp_path)
    regress(X, y=y, **QUICK).save(tmp_path)
    (tmp_path / "predictions.csv").unlink()
    with pytest.raises(RunError, match="is incomplete or damaged"):
        RegressResult.load(tmp_path)
    report = json.loads((tmp_path / "report.json").read_text())
    (tmp_path / "report.json").write_text(json.dumps({**report, "format": 9}))
    with pytest.raises(RunError, match=r"in format 1. Use the lowdim that wrote it"):
        RegressResult.load(tmp_path)


def test_maps_of_every_number_of_modes():
    W = np.arange(120.0).reshape(2, 3, 4, 5)
    (one,) = maps_record(W, W.shape, [])
    assert np.shape(one["values"]) == (4, 5)
    assert one["title"] == "slice 1, 2"
    assert np.shape(maps_record(np.ones((200, 3)), (200, 3), [])[0]["values"]) == (96, 3)
    assert [m["title"] for m in maps_record(np.ones((2, 3, 3)), (3, 3), ["a", "b"])] == ["a", "b"]
    assert maps_record(np.ones(4), (4,), [])[0]["values"] == [[1.0] * 4]
    assert len(maps_record(np.ones((9, 3, 3)), (3, 3), list("abcdefghi"))) == 6
