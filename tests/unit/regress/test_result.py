"""Results: samples that fit the model, targets that are there or not, labels that come back as they were."""

import numpy as np
import pandas as pd
import pytest
from drawn import classification, regression

from lowdim.errors import DataError, RunError, ShapeError
from lowdim.regress import RegressResult, regress

QUICK = {"ranks": (1,), "alphas": (1e-2,), "folds": 3}

pytestmark = pytest.mark.filterwarnings("ignore")


def frame(N=60):
    """A table with names, two features, and a target that they make."""
    rng = np.random.default_rng(0)
    X = rng.normal(size=(N, 2))
    table = pd.DataFrame(X, columns=["a", "b"])
    table.insert(0, "who", [f"p{i}" for i in range(N)])
    return table.assign(age=X[:, 0] - X[:, 1] + 0.01 * rng.normal(size=N))


def test_samples_of_another_shape_are_refused():
    X, y, _ = regression((6, 5), 1, 60)
    result = regress(X, y=y, **QUICK)
    assert len(result.predict(X)) == 60
    with pytest.raises(ShapeError, match=r"samples have shape \(5, 6\), expected \(6, 5\) as in the fit"):
        result.predict(X.transpose(0, 2, 1))
    with pytest.raises(ShapeError, match=r"samples have shape \(30,\), expected \(6, 5\)"):
        result.predict(X.reshape(60, 30))
    flat = regress(X.reshape(60, 30), y=y, shape=(6, 5), **QUICK)
    for same in (X, X.reshape(60, 30)):
        np.testing.assert_allclose(flat.predict(same)["predicted"], result.predict(X)["predicted"])
    with pytest.raises(ShapeError, match=r"predict: shape=\(6, 5\) needs 30 features per sample, X has 12"):
        flat.predict(X.reshape(60, 30)[:, :12])
    with pytest.raises(DataError, match="predict: sample 3 holds NaN"):
        result.predict(np.where(np.arange(60)[:, None, None] == 3, np.nan, X))


def test_volumes_elsewhere_in_space_are_refused(tmp_path):
    nibabel = pytest.importorskip(
        "nibabel", reason="nibabel is not installed (pip install 'lowdim[imaging]')"
    )
    X, y, _ = regression((4, 3, 2), 1, 30)
    pd.DataFrame({"y": y}).to_csv(tmp_path / "y.csv", index=False)
    series = np.moveaxis(X, 0, -1).astype(np.float32)
    for name, affine in (("here", np.eye(4)), ("there", np.diag([2.0, 2.0, 2.0, 1.0]))):
        nibabel.save(nibabel.Nifti1Image(series, affine), tmp_path / f"{name}.nii")
    result = regress(tmp_path / "here.nii", labels=tmp_path / "y.csv", **QUICK)
    assert len(result.predict(tmp_path / "here.nii")) == 30
    with pytest.raises(DataError, match="lie elsewhere in space than those of the fit"):
        result.predict(tmp_path / "there.nii")


def test_what_a_mask_hides_counts_for_nothing(tmp_path):
    X, y, _ = regression((6, 5), 1, 60)
    mask = np.ones((6, 5), dtype=bool)
    mask[:, 0] = mask[0, :] = False
    plain = regress(np.where(mask, X, 0), y=y, mask=mask, **QUICK)
    for outside in (np.nan, 1e6):
        given = np.where(mask, X, outside)
        found = regress(given, y=y, mask=mask, **QUICK)
        np.testing.assert_allclose(found.model.coef_, plain.model.coef_, rtol=1e-6)
        assert found.report["scale"] == pytest.approx(X[:, mask].std())
        for key in ("score", "plain_score"):
            assert found.report["assessment"][key] == pytest.approx(plain.report["assessment"][key])
        found.save(tmp_path)
        again = RegressResult.load(tmp_path)
        np.testing.assert_allclose(again.predict(given)["predicted"], found.model.predict(given))
    assert "on all 20 places" in plain.report["sentence"]
    assert plain.report["plain_parameters"] == 20
    inside = regress(X[:, mask], y=y, mask=mask, **QUICK)
    np.testing.assert_allclose(inside.model.coef_, plain.model.coef_, rtol=1e-6)
    assert len(inside.predict(X[:, mask])) == 60
    with pytest.raises(DataError, match="sample 0 of array holds NaN"):
        regress(np.where(mask, np.nan, X), y=y, mask=mask, **QUICK)


def test_names_and_missing_targets_of_tables(tmp_path):
    table = frame()
    result = regress(table, target="age", **QUICK)
    assert result.report["features"] == ["a", "b"]
    found = result.predict(table)
    assert found["sample"].tolist() == table["who"].tolist()
    assert result.score(found) > 0.99
    assert result.predict(table.drop(columns="age"))["sample"].tolist() == table["who"].tolist()
    empty = result.predict(table.assign(age=np.nan))
    assert "target" not in empty
    assert result.score(empty) is None
    partly = result.predict(table.assign(age=table["age"].where(table.index % 2 == 0)))
    assert partly["target"].notna().sum() == 30
    assert result.score(partly) > 0.99
    assert result.score(found.head(1)) is None
    assert result.score(found.assign(target="word")) is None


@pytest.mark.parametrize(
    ("labels", "kind"), [(["no", "yes"], "U"), ([3, 7], "i"), ([1.0, 2.0], "f"), ([False, True], "b")]
)
def test_some_labels_may_be_unknown(tmp_path, labels, kind):
    table = frame()
    table = table.assign(age=np.array(labels)[(table["age"] > 0).astype(int)])
    result = regress(table, target="age", task="classification", **QUICK)
    assert result.model.classes_.dtype.kind == kind
    table.assign(age=table["age"].where(table.index >= 20)).to_csv(tmp_path / "new.csv", index=False)
    found = result.predict(tmp_path / "new.csv")
    assert found["target"].isna().sum() == 20
    assert result.score(found) > 0.9
    assert set(found["target"].dropna()) <= {str(labels[0]), str(labels[1]), "1", "2"}


@pytest.mark.parametrize("labels", [["01", "02"], ["NA", "nan"], [True, False], [1, 2], [1.0, 2.0]])
def test_predictions_come_back_as_they_were(tmp_path, labels):
    X, y, _ = classification(N=60)
    result = regress(X, y=np.array(labels)[y], task="classification", **QUICK)
    result.predictions["sample"] = ["NA", *map(str, range(1, 60))]
    result.save(tmp_path)
    again = RegressResult.load(tmp_path).predictions
    for column in result.predictions:
        assert again[column].tolist() == result.predictions[column].tolist()


def test_numbers_come_back_exactly(tmp_path):
    X, y, _ = regression(N=60)
    result = regress(X, y=y, **QUICK)
    result.save(tmp_path)
    again = RegressResult.load(tmp_path).predictions
    for column in ("target", "predicted"):
        assert again[column].tolist() == result.predictions[column].tolist()
    (tmp_path / "predictions.csv").write_text("sample,target\n0,1\n")
    with pytest.raises(RunError, match="is incomplete or damaged"):
        RegressResult.load(tmp_path)


def test_sentences_of_plain_vectors_and_of_three_classes():
    X, y, _ = regression((6, 5), 1, 60)
    plain = regress(X.reshape(60, 30), y=y, alphas=100.0, folds=3)
    assert plain.summary().endswith("Model: vector, 30 parameters.")
    assert plain.report["sentence"].endswith("worse beyond chance: try other penalties.")
    X, y, _ = classification((6, 5), N=90, classes=3)
    three = regress(X, y=y, **QUICK)
    assert three.summary().endswith("Model: cp of rank 1, 14 parameters in place of 90.")
